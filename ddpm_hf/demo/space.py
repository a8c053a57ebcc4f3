"""The page as a Space of the Hub: the model or its id, this package, an app.py, and the versions installed here."""

import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData, constants
from packaging.requirements import Requirement
from packaging.version import Version

import ddpm_hf
from ddpm_hf.demo.models import Source
from ddpm_hf.hub.cards import merged
from ddpm_hf.hub.public_files import Files, public_files
from ddpm_hf.hub.push import Push
from ddpm_hf.hub.repository import api_of, retried, told_in_one_sentence
from ddpm_hf.recipes import LAUNCHERS, PIPELINES, RECIPES, folder_of
from ddpm_hf.training.publish import model_push

MODEL = "model"
"""The model's folder in the Space, of one that is not on the Hub itself."""

TEMPLATE = "Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference"
"""A line of the README.md that the Hub itself writes into a new Space."""

APP = '''"""The page of a diffusion model, made by ddpm-hf-demo."""

from ddpm_hf.demo.models import Source
from ddpm_hf.demo.page import Page

Page(Source({model!r}), title={title!r}).launch()
'''


def space_push(source: Source, repository: str, license: str) -> Push:
    """All that the Space is made of.

    Args:
        source: The model: a folder goes into the Space; of a Hub id the commit of now is noted.
        repository: OWNER/NAME of the Space.
        license: License of the model.

    Raises:
        ValueError: the folder holds what is not published, or this package is not installed.
        OSError: the Hub cannot be asked about the model.
    """
    gradio = version("gradio")
    files: Files = package_files()
    on_hub = None
    if Path(source.name).exists():
        own = model_push(Path(source.name), repository, license).files
        files |= {f"{MODEL}/{name}": content for name, content in own.items()}
        model = MODEL
    else:
        on_hub, _, revision = source.name.partition("@")
        with told_in_one_sentence(on_hub):
            found = retried(lambda: api_of(None).model_info(on_hub, revision=revision or None), on_hub, 1)
        model = f"{on_hub}@{found.sha}"
    title = repository.partition("/")[2]
    files["app.py"] = APP.format(model=model, title=on_hub or title).encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in [*pinned(), f"gradio=={gradio}"]).encode()
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=gradio,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        license=license,
        models=[on_hub] if on_hub else None,
        tags=["ddpm", "diffusion"],
    )
    return Push(f"Page of {on_hub or 'a model'}", files, lambda present: card_of(data, present))


def card_of(data: SpaceCardData, present: str | None) -> str:
    """README.md of a Space. The versions are those of the push, whatever it said before.

    Args:
        data: The metadata.
        present: The README that is there, if any.
    """
    model = data.models[0] if data.models else None
    of_model = f"[{model}](https://huggingface.co/{model})" if model else "the model in `model/`"
    sections = {
        "space": f"# {data.title}\n\nA page to try {of_model} on, a denoising diffusion model: images of any "
        "seed, their way out of the noise, samplers beside each other, walks between seeds, inpainting. `ddpm-hf-demo "
        "--push_to_hub` made it. With what is in requirements.txt, `python app.py` shows it on any machine.\n"
    }
    is_of_the_hub = present is not None and TEMPLATE in present
    card = SpaceCard(merged(SpaceCard, data, sections, None if is_of_the_hub else present))
    for key in ("sdk", "sdk_version", "python_version", "app_file"):
        card.data[key] = data[key]
    return str(card)


def package_files() -> Files:
    """This package as a wheel holds it."""
    package = Path(ddpm_hf.__file__).parent
    files = public_files(package, "**/*.py", "assets/*.safetensors", "assets/digits/*", prefix="ddpm_hf/")
    for kind in (RECIPES, LAUNCHERS):
        files |= public_files(folder_of(kind), "*.yaml", prefix=f"ddpm_hf/{kind}/")
    return files | public_files(folder_of(PIPELINES), "*.py", prefix=f"ddpm_hf/{PIPELINES}/")


def pinned() -> list[str]:
    """What this package needs, each in the version that is installed here.

    Raises:
        ValueError: the package is not installed, so that nothing says what it needs.
    """
    try:
        needed = [Requirement(line) for line in requires("ddpm-hf") or ()]
    except PackageNotFoundError:
        raise ValueError("ddpm-hf runs from its files and is not installed; run 'pip install -e .' there") from None
    wanted = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{_extras(one)}=={Version(version(one.name)).public}" for one in wanted]


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def address_of(repository: str) -> str:
    """Where people find the Space."""
    return f"{constants.ENDPOINT}/spaces/{repository}"
