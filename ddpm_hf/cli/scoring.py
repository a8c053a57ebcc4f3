"""What ddpm-hf-evaluate does, once its settings are known to be right."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import diffusers
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor

from ddpm_hf.cli.bits_per_dim import described, load_model, score_model
from ddpm_hf.cli.downloads import local_folder
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.command_line import fail
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.files import check_writable, is_temporary, sha256_of, write_json, write_text
from ddpm_hf.images import save_png
from ddpm_hf.launch import decided_by_main, environment, start_processes
from ddpm_hf.manifest import claim, read_manifest
from ddpm_hf.metrics.evaluation import Evaluation, Results, Score
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.reference import FeatureExtraction, Statistics, fingerprint_of
from ddpm_hf.metrics.results import markdown_table, nearest_picture
from ddpm_hf.metrics.table import METRICS, fewest_images


@dataclass(frozen=True)
class Reference:
    """What the samples are compared with.

    Args:
        settings: What it was made from.
        images: uint8 ``(M, C, H, W)``; None of a file of statistics.
        fingerprint: Changes with the images.
        statistics: Mean and covariance of a file; None where there are images.
    """

    settings: dict[str, Any]
    images: Tensor | None = None
    fingerprint: str = ""
    statistics: Statistics | None = None


def run(config: EvaluateConfig) -> None:
    """Score the images or the model, and print the table; problems end the program.

    The scores are printed and written first; files beside them that cannot be written are named, with status 1.
    """
    problems: list[str] = []
    try:
        accelerator = start_processes(config.threads)
        _check_writable(config, accelerator)
        evaluate = evaluate_model if config.is_of_a_model else evaluate_samples
        for name, write in evaluate(config, accelerator).items():
            try:
                write()
            except Exception as error:  # whatever it is, the scores are there, and the other files can be written
                reason = getattr(error, "strerror", None) or error
                problems.append(f"{name} could not be written ({reason})")
        if accelerator.is_main_process:
            files = sorted(path.name for path in config.output.iterdir() if not is_temporary(Path(path.name)))
            print(f"\nEverything is in {config.output}: {', '.join(files)}")
        accelerator.end_training()
    except (ValueError, OSError) as error:
        fail(str(error))
    if problems:
        fail(f"the scores are printed above, but {'; '.join(problems)}; make room, and give the same command", status=1)


Files = dict[str, Callable[[], object]]
"""What is to be written once the scores are known: name -> what writes it, in this order."""


def evaluate_model(config: EvaluateConfig, accelerator: Accelerator) -> Files:
    """Find how many bits the model needs for the reference, print them, and say what is to be written.

    Raises:
        ValueError: the settings, the model and the reference do not go together.
        OSError: the model is not there, or the results cannot be written.
    """
    show_progress = _shows_progress(config, accelerator)
    name, reference = str(config.model), _load_data(config, show_progress)
    pipe = load_model(name, local_folder(name, None, accelerator)[0], reference)
    settings = {
        **described(name, pipe, config.likelihood),
        "reference": _described_reference(config, reference.fingerprint, len(reference)),
        "metrics": config.metrics,
        "batch_size": config.batch_size,
    }
    _claim(config, settings, accelerator)
    scores, files = score_model(
        pipe, reference, config.likelihood, config.batch_size, config.output, accelerator, show_progress
    )
    if not accelerator.is_main_process:
        return {}
    return _results(config, Results({name: scores}, {name: len(reference)}, len(reference)), settings) | files


def evaluate_samples(config: EvaluateConfig, accelerator: Accelerator) -> Files:
    """Score each set of samples, print the scores, and say what is to be written.

    Raises:
        ValueError: the settings, the images and the reference do not go together.
        OSError: the results cannot be written.
    """
    show_progress = _shows_progress(config, accelerator)
    extractor = load_extractor(config.extractor, config.extractor_weights).to(accelerator.device)
    features_of = FeatureExtraction(extractor, accelerator, config.batch_size, config.cache_dir, show_progress)
    reference = load_reference(config, show_progress)
    sets = {name: load_samples(name, config) for name in config.sets}
    for name, images in sets.items():
        _check_together(config, name, images, reference, features_of)
    fingerprints = {name: fingerprint_of(images) for name, images in sets.items()}
    settings = {
        "samples": {name: _described(name, images, fingerprints[name]) for name, images in sets.items()},
        "reference": reference.settings,
        "extractor": {"name": config.extractor, "sha256": extractor.sha256},
        "metrics": config.metrics,
        "bootstrap": config.bootstrap,
        "batch_size": config.batch_size,
    }
    _claim(config, settings, accelerator)

    real = None if reference.images is None else features_of.kept(reference.images, reference.fingerprint)
    compared_with = reference.statistics if real is None else real
    assert compared_with is not None
    evaluation = Evaluation(config.metrics, extractor, compared_with, config.bootstrap)
    scores: dict[str, dict[str, Score]] = {}
    files: Files = {}
    for number, (name, images) in enumerate(sets.items(), start=1):
        fake = features_of.kept(images, fingerprints[name])
        if not accelerator.is_main_process:
            continue
        scores[name] = evaluation.score(fake)
        if reference.images is not None and real is not None:
            picture = partial(nearest_picture, images, fake, reference.images, real)
            path = config.output / ("nearest.png" if len(sets) == 1 else f"nearest-{number}.png")
            files[str(path)] = partial(_save_picture, picture, path)
    if not accelerator.is_main_process:
        return {}
    if config.save_statistics is not None and reference.images is not None and real is not None:
        statistics = partial(Statistics.of, real, extractor, tuple(reference.images.shape[1:]))
        path = config.save_statistics
        files = {str(path): lambda: statistics().save(path)} | files
    results = evaluation.results(scores, {name: len(images) for name, images in sets.items()})
    return _results(config, results, settings) | files


def _save_picture(picture: Callable[[], Image], path: Path) -> None:
    save_png(picture(), path)


def load_samples(name: str, config: EvaluateConfig) -> Tensor:
    """Generated images, uint8 ``(N, C, H, W)``.

    Raises:
        ValueError: they cannot be read, or are too few.
    """
    is_hub_id = name.count("/") == 1 and not Path(name).exists() and not Path(name).suffix
    images = load_cached_images(DataConfig(name=name)).images if is_hub_id else load_images(Path(name))
    wanted = config.num_images or max(len(images), fewest_images(config.metrics))
    if len(images) < wanted:
        raise ValueError(f"{name} holds {len(images)} images, and {wanted} are wanted; draw more")
    return images[:wanted]


def load_reference(config: EvaluateConfig, show_progress: bool) -> Reference:
    """The real images, or what a file says of them.

    Raises:
        ValueError: they cannot be read, are too few, or are not enough for the metrics.
    """
    path = Path(config.reference)
    if path.suffix == ".npz":
        statistics = Statistics.load(path)
        if statistics is not None:
            return Reference({"name": config.reference, "sha256": sha256_of(path)}, statistics=statistics)
        images, fingerprint = load_images(path), sha256_of(path)
    else:
        data = _load_data(config, show_progress)
        images, fingerprint = data.images, data.fingerprint
    if len(images) < fewest_images(config.metrics):
        raise ValueError(
            f"{config.reference} holds {len(images)} images, and the metrics need {fewest_images(config.metrics)}"
        )
    return Reference(_described_reference(config, fingerprint, len(images)), images, fingerprint)


def _load_data(config: EvaluateConfig, show_progress: bool) -> ImageData:
    try:
        return load_cached_images(config.reference_data(), show_progress)
    except ValueError as error:  # which names settings of training
        message = re.sub(r"\bdata\.name\b", "--reference", str(error))
        raise ValueError(re.sub(r"\bdata\.(\w+)", r"--reference_\1", message)) from error


def _check_together(
    config: EvaluateConfig, name: str, images: Tensor, reference: Reference, features_of: FeatureExtraction
) -> None:
    """Refuse at once what would fail or mislead after hours."""
    shape = tuple(images.shape[1:])
    if reference.images is not None and tuple(reference.images.shape[1:]) != shape:
        raise ValueError(
            f"{name} has images of {shape} and {config.reference} of {tuple(reference.images.shape[1:])} (channels, "
            f"height, width); give --reference_resolution {shape[2]} --reference_channels {shape[0]}, or other samples"
        )
    one = features_of.of(images[:1])
    if any(METRICS[name].needs_class_scores for name in config.metrics):
        features_of.extractor.check_classes()
    if reference.statistics is not None:
        for metric in config.metrics:
            if METRICS[metric].reference == "images":
                raise ValueError(
                    f"the metric {metric!r} needs the images of the reference, and {config.reference} holds only their "
                    "mean and covariance; give the images, or --metrics fid"
                )
        if config.save_statistics is not None:
            raise ValueError(f"save_statistics is for a reference of images, and {config.reference} holds statistics")
        reference.statistics.check(Path(config.reference), features_of.extractor, shape, one.shape[1])


def _described(name: str, images: Tensor, fingerprint: str) -> dict[str, Any]:
    """What the manifest says of a set of samples; of those that ddpm-hf-sample drew, all that its manifest says."""
    manifest = read_manifest(Path(name)) if Path(name).is_dir() else None
    made_from = {} if manifest is None else {"made_from": manifest["settings"]}
    return {"fingerprint": fingerprint, "num_images": len(images), **made_from}


def _described_reference(config: EvaluateConfig, fingerprint: str, num_images: int) -> dict[str, Any]:
    transform = {name: value for name, value in vars(config).items() if name.startswith("reference_")}
    return {"name": config.reference, **transform, "fingerprint": fingerprint, "num_images": num_images}


def _shows_progress(config: EvaluateConfig, accelerator: Accelerator) -> bool:
    shown: bool = accelerator.is_main_process and not config.quiet and sys.stderr.isatty()
    if not shown:
        datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()  # that of loading a model's two parts
    return shown


def _claim(config: EvaluateConfig, settings: dict[str, Any], accelerator: Accelerator) -> None:
    """See that the folder is free or of the same settings, and write the manifest."""
    decided_by_main(accelerator, lambda: claim(config.output, settings, environment(accelerator)))


def _results(config: EvaluateConfig, results: Results, settings: dict[str, Any]) -> Files:
    """Print the results; what writes them."""
    table = markdown_table(results)
    print(table, flush=True)
    metrics, readable = config.output / "metrics.json", config.output / "table.md"
    return {
        str(metrics): lambda: write_json(metrics, {**settings, **results.to_dict()}),
        str(readable): lambda: write_text(readable, table),
    }


def _check_writable(config: EvaluateConfig, accelerator: Accelerator) -> None:
    """See that every file can be written where it is to go, before hours of work; missing folders are made.

    Raises:
        ValueError: one cannot.
    """

    def check() -> None:
        check_writable("--output", config.output / "metrics.json")
        if config.save_statistics is not None:
            check_writable("--save_statistics", config.save_statistics)

    decided_by_main(accelerator, check)
