"""A model's files: where its network lies, which weights there are, and in one sentence what is wrong with them."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ddpm_hf.files import read_json

_FORM: Final = r"(?:unet/)?diffusion_pytorch_model(?:\.(?P<variant>[^.]+?))?(?:-\d+-of-\d+)?\."


class OnlyVariant(ValueError):
    """A model on the Hub has weights of one variant, and none without.

    Args:
        repository: OWNER/NAME.
        variant: Its name, such as fp16.
        commit: Where it was found.
    """

    def __init__(self, repository: str, variant: str, commit: str) -> None:
        super().__init__(f"{repository} has weights of the variant {variant!r} only; give variant={variant!r}.")
        self.variant, self.commit = variant, commit


def check_local_folder(path: Path, needs_weights: bool = True) -> None:
    """Say in one sentence what is wrong with a local folder, before diffusers takes its path for a Hub id.

    Raises:
        FileNotFoundError: it is missing, is no pipeline's, or has no weights that are read.
        ValueError: its index is of another form, or it has weights of a variant where diffusers finds none.
    """
    index = path / "model_index.json"
    if path.is_dir() and not index.is_file():
        hint = "; it holds a single model, for UNet2DModel.from_pretrained" if (path / "config.json").is_file() else ""
        raise FileNotFoundError(
            f"{path} has no model_index.json, so it is not a pipeline's folder{hint or networks_below(path)}."
        )
    is_hub_id = len(path.parts) <= 2 and not path.is_absolute() and path.parts[:1] not in ((".",), ("..",), ("~",))
    if not path.exists() and not is_hub_id:
        raise FileNotFoundError(f"{path} does not exist; give a pipeline's folder, or a Hub id such as owner/name.")
    if not path.is_dir():
        return
    read_json(index)
    network = network_in(path)
    pickled = next(network.glob("*.bin"), None)
    if needs_weights and pickled is not None and not any(network.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{pickled} is pickled, which can hold code and is not read; make safetensors of it by 'ddpm-hf-convert "
            f"{path} NEW_FOLDER'."
        )
    variant = only_variant(path)
    if needs_weights and variant is not None and network == path:
        raise ValueError(
            f"{path} has its weights of the variant {variant!r} beside model_index.json, where diffusers finds those "
            f"without a variant only; put them into folders by 'ddpm-hf-convert {path} NEW_FOLDER'."
        )


def check_has_weights(repository: str, folder: Path, files: Callable[[], Iterable[str]]) -> None:
    """See that weights without a variant's name have come from the Hub.

    Args:
        repository: OWNER/NAME.
        folder: Where they are now; its name is that of the commit.
        files: Says which files the repository has.

    Raises:
        OnlyVariant: those of one variant are all there are.
        ValueError: they are pickled.
    """
    fetched = [file.relative_to(folder).as_posix() for file in [*folder.glob("*"), *folder.glob("unet/*")]]
    variants = variants_of(fetched)
    if None in variants:
        return
    names = () if variants else list(files())
    variants = variants or variants_of(names)
    variant = variants.pop() if len(variants) == 1 else None
    if variant is not None:
        raise OnlyVariant(repository, variant, folder.name)
    if not variants and variants_of(names, "bin"):
        raise ValueError(
            f"{repository} has only pickled weights (.bin), which can hold code and are not read; fetch it by 'hf "
            f"download {repository} --local-dir FOLDER' and make safetensors of it by 'ddpm-hf-convert FOLDER "
            "NEW_FOLDER'."
        )


def network_in(path: Path) -> Path:
    """The folder of the network; in old pipelines all files lie side by side."""
    return path / "unet" if (path / "unet").is_dir() else path


def networks_below(path: Path) -> str:
    """The end of a sentence about a folder that is no model's: those in it that are, such as a checkpoint's."""
    found = sorted(config.parent.name for config in path.glob("unet*/config.json"))
    return f"; it holds networks in {' and '.join(found)}: give one of these to ddpm-hf-convert" if found else ""


def only_variant(path: Path) -> str | None:
    """The variant of the weights in a local folder, if there is one and no weights without."""
    if not path.is_dir():
        return None
    found = variants_of(file.name for file in network_in(path).iterdir())
    return found.pop() if len(found) == 1 else None


def variants_of(files: Iterable[str], suffix: str = "safetensors") -> set[str | None]:
    """The variants of which there are weights among these files, None standing for those without a variant's name."""
    return {match["variant"] for file in files if (match := re.fullmatch(_FORM + suffix, file))}


def pickled_weights(folder: Path) -> list[Path]:
    """The pickled files that hold a network's weights: those without a variant's name, or of the only variant."""
    files = sorted(file for file in folder.glob("*.bin") if variants_of([file.name], "bin"))
    variants = variants_of([file.name for file in files], "bin")
    wanted = None if None in variants or len(variants) != 1 else variants.pop()
    return [file for file in files if variants_of([file.name], "bin") == {wanted}]
