"""README.md of a model or of a data set of samples: metadata for the Hub, and sections that a user may edit.

Each section stands between comments, the first with a hash of its text. The next push replaces a section whose text
still has that hash, and leaves alone one that was edited or removed, and all text outside. Metadata that are there
stay, but for scores of ours.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData, RepoCard

from ddpm_hf.files import read_json
from ddpm_hf.metrics.table import IN_COMMAND, SCORES

LICENSE = "apache-2.0"
"""License of models and samples for which no other is given."""
TASK = "unconditional-image-generation"
BY = "ddpm_hf"
"""Marks scores of ours, which the next push replaces."""


@dataclass(frozen=True)
class Subject:
    """The facts that a model's card states.

    Args:
        repository: OWNER/NAME.
        license: License of the model, as the Hub abbreviates it.
        unet: Config of the network.
        config: Settings of the training run.
        results: metrics.json of the run; empty before its end.
        environment: environment.json of the run.
        step: Steps trained.
        has_grid: Whether samples/grid.png is there.
    """

    repository: str
    license: str
    unet: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    has_grid: bool = False

    @property
    def base_model(self) -> dict[str, Any] | None:
        """What the run has recorded of the model that it started from, if it did."""
        base = self.environment.get("base_model")
        return base if isinstance(base, dict) else None

    @property
    def dataset_id(self) -> str | None:
        """Id of the data set on the Hub, if the data came from there."""
        data = self.config.get("data", {})
        name = data.get("name", "")
        return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(".parquet") else None


def scores_of(results: dict[str, Any]) -> dict[str, float]:
    """Score -> value, from the metrics.json of a training run."""
    return {name: entry["samples"] for name, entry in results.get("scores", {}).items()}


def _title(score: str) -> str:
    return SCORES[score].title if score in SCORES else score


def _num_images(results: dict[str, Any]) -> Any:
    """How many samples were scored; a metrics.json of earlier versions has that number alone."""
    found = results.get("num_images")
    return found["samples"] if isinstance(found, dict) else found


def model_card(subject: Subject, present: str | None) -> str:
    """README.md of a model.

    Args:
        subject: What it tells of.
        present: The README that is there, if any.
    """
    results = _eval_results(subject)
    base = (subject.base_model or {}).get("id")
    data = ModelCardData(
        license=subject.license,
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["ddpm", "diffusion"],
        datasets=[subject.dataset_id] if subject.dataset_id else None,
        base_model=base,
        base_model_relation="finetune" if base else None,
        model_name=subject.repository.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    sections = {
        "model": _model(subject),
        "use": _use(subject),
        "results": _results(subject),
        "training": _training(subject),
        "limits": _limits(subject),
    }
    return merged(ModelCard, data, {name: text for name, text in sections.items() if text}, present)


def dataset_card(repository: str, manifest: dict[str, Any], license: str, present: str | None) -> str:
    """README.md of a data set of samples.

    Args:
        repository: OWNER/NAME.
        manifest: The manifest.json of the samples, as it is published.
        license: License of the images.
        present: The README that is there, if any.
    """
    made = manifest["settings"]
    count = made["num_images"]
    data = DatasetCardData(
        license=license,
        task_categories=[TASK],
        size_categories=[_size(count)],
        tags=["synthetic", "ddpm", "diffusion"],
        pretty_name=repository.partition("/")[2],
    )
    model = f"{made['model']}" + (f" at {made['revision']}" if made["revision"] else "")
    sections = {
        "samples": (
            f"# {repository.partition('/')[2]}\n\n"
            f"{count:,} images that a diffusion model drew; none is a photograph or a scan of anything.\n\n"
            f"| | |\n| --- | --- |\n| model | {model} |\n| its weights (SHA-256) | `{made['weights_sha256']}` |\n"
            f"| sampler | {made['scheduler']['class']}, {len(made['timesteps'])} steps, eta {made['eta']:g} |\n"
            f"| seeds | {made['first_seed']} to {made['first_seed'] + count - 1}, one for each image |\n"
            f"| classes | {made['class_labels'] or 'none'} |\n"
        ),
        "use": f'```python\nfrom datasets import load_dataset\n\nload_dataset("{repository}", split="train")\n```\n\n'
        "Columns: `image`, the `seed` that it was drawn from and, of a model with classes, its `label`. "
        "`manifest.json` holds every setting and version.\n",
        "limits": "## Limits\n\nThe images have the gaps and biases of the model and of the data that it learned from, "
        "and may repeat some of these. Do not mix them unmarked into data that are to stand for the world.\n",
    }
    return merged(DatasetCard, data, sections, present)


def merged(kind: type[RepoCard], data: CardData, sections: dict[str, str], present: str | None) -> str:
    """A card of these metadata and sections, in which what a user has written stays.

    Raises:
        ValueError: the README that is there has metadata that cannot be read.
    """
    if present is None or not present.strip():
        blocks = "\n".join(_block(name, text) for name, text in sections.items())
        return f"---\n{data.to_yaml()}\n---\n\n{blocks}"
    try:
        card = kind(present, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the README.md that is there begins with metadata that cannot be read ({reason}); mend them on its page"
        ) from error
    for key, value in data.__dict__.items():
        if key == "tags":
            card.data[key] = list(dict.fromkeys([*(card.data.get("tags") or []), *value]))
        elif key == "eval_results":
            theirs = [result for result in card.data.get(key) or [] if (result.metric_args or {}).get("by") != BY]
            card.data[key] = [*theirs, *(value or [])] or None
        elif card.data.get(key) is None:
            card.data[key] = value
    for name, text in sections.items():
        card.text = _replaced(card.text, name, text)
    return str(card)


def _block(name: str, text: str) -> str:
    return (
        f"<!-- {BY} {name} {_hash(text)}: the next push replaces this section, unless you edit it -->\n{text.strip()}\n"
        f"<!-- /{BY} {name} -->\n"
    )


def _replaced(page: str, name: str, text: str) -> str:
    found = re.search(rf"<!-- {BY} {name} (\w+):.*?-->\n(.*?)\n<!-- /{BY} {name} -->\n?", page, re.DOTALL)
    if found is None or _hash(found[2]) != found[1]:
        return page
    return page[: found.start()] + _block(name, text) + page[found.end() :]


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def _eval_results(subject: Subject) -> list[EvalResult]:
    data, results = subject.config.get("data", {}), subject.results
    args = {
        "by": BY,
        "num_images": _num_images(results),
        "extractor": results.get("extractor"),
        "extractor_sha256": results.get("extractor_sha256"),
        "num_inference_steps": subject.config.get("evaluation", {}).get("num_inference_steps"),
        "code": results.get("environment", {}).get("commit"),
    }
    return [
        EvalResult(
            task_type=TASK,
            task_name="Unconditional image generation",
            dataset_type=subject.dataset_id or data["name"],
            dataset_name=data["name"],
            dataset_config=data["config"],
            dataset_split=data["split"],
            dataset_revision=data["revision"],
            metric_type=name,
            metric_name=f"{_title(name)} of {args['num_images']} images",
            metric_value=round(value, 6),
            metric_args={key: value for key, value in args.items() if value is not None},
        )
        for name, value in scores_of(results).items()
    ]


def _model(subject: Subject) -> str:
    size, classes = subject.unet.get("sample_size"), subject.unet.get("num_class_embeds")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = subject.unet.get("in_channels", subject.unet.get("out_channels"))
    of_data = f", trained on {_data(subject)}" if subject.config else ""
    of_classes = f" It knows {classes} classes." if classes else ""
    grid = "\n![Samples](samples/grid.png)\n" if subject.has_grid else ""
    return (
        f"# {subject.repository.partition('/')[2]}\n\n"
        f"A denoising diffusion model ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)) that draws images of "
        f"{height} x {width} pixels with {channels} channel(s){of_data}.{of_classes}\n{grid}"
    )


def _use(subject: Subject) -> str:
    evaluation = subject.config.get("evaluation")
    again = ""
    if evaluation and subject.results:
        count, first = _num_images(subject.results), subject.results["first_image_seed"]
        labels, data = subject.results.get("class_labels"), subject.config["data"]
        of_classes = f" --class_labels {labels} --guidance_scale {evaluation['guidance_scale']:g}" if labels else ""
        if evaluation.get("guidance_interval"):
            of_classes += " --guidance_interval " + json.dumps(evaluation["guidance_interval"], separators=(",", ":"))
        spacing = evaluation["timestep_spacing"] or subject.config["diffusion"]["timestep_spacing"]
        again = (
            "\nThe images that were scored, and the training run with its scores again:\n\n```bash\n"
            f"ddpm-hf-sample --model {subject.repository} --output samples --num_images {count} --seed {first} "
            f"--scheduler {evaluation.get('sampler', 'ddim')} "
            f"--num_inference_steps {evaluation['num_inference_steps']} "
            f"--timestep_spacing {spacing} --eta {evaluation['eta']:g}{of_classes}\n"
        )
        metrics = [name for name in evaluation["metrics"] if name in IN_COMMAND]
        if subject.results.get("scores") and metrics:
            changed = "".join(
                f" --reference_{name} {json.dumps(data[name], separators=(',', ':'))}"
                for name in ("channels", "alpha", "background", "dtype", "value_range", "center_crop", "resolution")
                if data.get(name) not in (None, False, "composite", "white")
            )
            if seen := evaluation.get("extractor_channels"):
                changed += f" --extractor_channels {json.dumps(seen, separators=(',', ':'))}"
            again += (
                f"ddpm-hf-evaluate --samples samples --reference {data['name']} --reference_split '{data['split']}'"
                f"{changed} --metrics {' '.join(metrics)} --extractor {evaluation['extractor']} "
                "--output scores\n"
            )
        again += "accelerate launch train_accelerate.py --config config.yaml  # the one of this repository\n```\n"
    channels = subject.unet.get("in_channels")
    drawn = (
        'pipe(num_inference_steps=100).images[0].save("image.png")'
        if channels in (1, 3, None)
        else f'pipe(num_inference_steps=100, output_type="np").images  # (1, height, width, {channels}), 0 to 1'
    )
    return (
        "## Use\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{subject.repository}")\n'
        f"{drawn}\n```\n\n"
        "With `from ddpm_hf import DDPMCustomPipeline` in its place, also from a seed for each image, with other grids "
        'of timesteps, class labels and guidance, and by `output_type="values"` in the units of the training images.'
        f"\n{again}"
    )


def _results(subject: Subject) -> str:
    scores = subject.results.get("scores")
    if not scores:
        return "## Results\n\nNo scores were computed.\n" if subject.config else ""
    columns = list(dict.fromkeys(column for entry in scores.values() for column in entry if column != "ratio"))
    rows = "\n".join(
        f"| {_title(name)} | {' | '.join(f'{entry[of]:.4g}' if of in entry else '-' for of in columns)} |"
        for name, entry in scores.items()
    )
    held_out = "; held out are as many real images that were not trained on" if "held_out" in columns else ""
    return (
        f"## Results\n\n{_num_images(subject.results)} images against the training images, in the features of "
        f"{subject.results.get('extractor')}{held_out}.\n\n| | {' | '.join(columns).replace('_', ' ')} |\n"
        f"|{' --- |' * (len(columns) + 1)}\n{rows}\n"
    )


def _training(subject: Subject) -> str:
    if not subject.config:
        return ""
    training, machine = subject.config["training"], subject.environment
    recipe = {name: subject.config[name] for name in ("seed", "data", "model", "diffusion", "training")}
    seconds = subject.results.get("seconds", {}).get("training")
    time = f", {seconds / 3600:.2g} hours" if seconds else ""
    return (
        f"## Training\n\n{_start(subject)}"
        f"{subject.step} of {training['steps']} steps of {training['batch_size']} images; "
        f"{machine.get('processes')} process(es) on {machine.get('device')} in mixed precision "
        f"{machine.get('mixed_precision')}{time}; torch {machine.get('torch')}, diffusers {machine.get('diffusers')}."
        "\n\n"
        "<details><summary>Recipe</summary>\n\n```yaml\n"
        f"{yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=100)}```\n\n</details>\n"
    )


def _start(subject: Subject) -> str:
    """From which weights the training started; nothing where they were random."""
    base = subject.base_model
    if base is None:
        return ""
    name, commit = base.get("id"), base.get("commit")
    model = (
        f"[{name}](https://huggingface.co/{name}) at commit `{commit}`" if name else "a model that is not on the Hub"
    )
    anew = base.get("layers_made_anew")
    but = f", but for {len(anew)} layer(s) that started anew" if anew else ""
    return f"The training started from the weights of {model} (their SHA-256: `{base.get('weights_sha256')}`){but}.\n\n"


def _limits(subject: Subject) -> str:
    if subject.config.get("data", {}).get("name") == "digits":
        source = (
            "The data are digits of 13 writers at 8x8 pixels (UCI, CC BY 4.0): they say little of other hands and "
            "scripts. "
        )
    elif subject.dataset_id:
        source = f"What is known of the data is on [their page](https://huggingface.co/datasets/{subject.dataset_id}). "
    else:
        source = ""
    return (
        f"## Limits\n\n{source}The images have the gaps and biases of the training data, may repeat some of these, and "
        "show nothing that happened. The model was made for research; what else it is fit for has not been studied.\n"
    )


def _data(subject: Subject) -> str:
    data = subject.config["data"]
    if subject.dataset_id:
        return f"[{data['name']}](https://huggingface.co/datasets/{data['name']}) ({data['split']})"
    return f"{data['name']} ({data['split']})"


def _size(count: int) -> str:
    """The Hub's class of size."""
    for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if count < limit:
            return name
    return "1M<n<10M"


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The content of a file; empty where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    return read_json(path, "restore it, or move it away") if path.exists() else {}
