"""What ddpm-hf-evaluate does, once its settings are known to be right."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import diffusers
from accelerate import Accelerator
from PIL.Image import Image

from ddpm_hf.cli.bits_per_dim import check_model, described, score_model
from ddpm_hf.cli.classes import fingerprint_of_members, members_of
from ddpm_hf.cli.compared import (
    check_together,
    described_reference,
    described_samples,
    in_range_of,
    load_data,
    load_held_out,
    load_reference,
    load_samples,
    notes_on_held_out,
)
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.command_line import fail
from ddpm_hf.files import check_writable, is_temporary, write_json, write_text
from ddpm_hf.images import Display, save_png
from ddpm_hf.launch import decided_by_main, environment, start_processes
from ddpm_hf.manifest import claim
from ddpm_hf.metrics.bits_per_dim import Likelihood
from ddpm_hf.metrics.by_class import ClassScores, score_by_class
from ddpm_hf.metrics.evaluation import Evaluation, Results, Score
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.intake import Intake
from ddpm_hf.metrics.memorisation import CopyingTest
from ddpm_hf.metrics.reference import FeatureExtraction, Statistics, fingerprint_of
from ddpm_hf.metrics.results import markdown_table, nearest_picture
from ddpm_hf.metrics.table import HELD_OUT
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.progress import Progress, has_terminal
from ddpm_hf.training.downloads import local_folder


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
    name = str(config.model)
    pipe: DDPMCustomPipeline = DDPMCustomPipeline.from_pretrained(local_folder(name, None, accelerator)[0])
    reference = load_data(in_range_of(pipe.format, config.reference_data()), show_progress)
    check_model(name, pipe, reference)
    likelihood = Likelihood(config.likelihood, rtol=config.ode_rtol, atol=config.ode_atol, num_steps=config.ode_steps)
    settings = {
        **described(name, pipe, likelihood),
        "reference": described_reference(config, reference.fingerprint, len(reference)),
        "metrics": config.metrics,
        "batch_size": config.batch_size,
    }
    _claim(config, settings, accelerator)
    scores, evaluations, files = score_model(
        pipe, reference, likelihood, config.batch_size, config.output, accelerator, show_progress
    )
    if not accelerator.is_main_process:
        return {}
    note = f"the network was asked {evaluations:g} times for each image"
    results = Results({name: scores}, {name: len(reference)}, len(reference), notes=[note])
    return _results(config, results, {**settings, "network_evaluations": evaluations}) | files


def evaluate_samples(config: EvaluateConfig, accelerator: Accelerator) -> Files:
    """Score each set of samples, print the scores, and say what is to be written.

    Raises:
        ValueError: the settings, the images and the reference do not go together.
        OSError: the results cannot be written.
    """
    show_progress = _shows_progress(config, accelerator)
    extractor = load_extractor(config.extractor, config.extractor_weights, accelerator).to(accelerator.device)
    sets = {name: load_samples(name, config) for name in config.sets}
    reference = load_reference(config, sets, show_progress)
    held_out = load_held_out(config, reference, show_progress) if config.has_held_out else None
    display = Display(reference.format, _as_tuple(config.shown_channels), config.colour_map)
    intake = Intake(reference.format, _as_tuple(config.extractor_channels))
    features_of = FeatureExtraction(extractor, accelerator, config.batch_size, config.cache_dir, show_progress, intake)
    for name, images in sets.items():
        display.check(images.shape[1])
        check_together(config, name, images, reference, features_of)
    members = {name: members_of(name, len(sets[name]), reference, config) for name in sets if config.per_class}
    fingerprints = {name: fingerprint_of(images) for name, images in sets.items()}
    settings = {
        "samples": {name: described_samples(name, images, fingerprints[name]) for name, images in sets.items()},
        "reference": reference.settings,
        **({} if held_out is None else {"held_out": held_out.settings}),
        "extractor": {"name": config.extractor, "sha256": extractor.sha256, **_chosen(config, "extractor_channels")},
        "metrics": config.scored,
        "bootstrap": config.bootstrap,
        "batch_size": config.batch_size,
        **_chosen(config, "shown_channels", "colour_map"),
        **({"per_class": {name: fingerprint_of_members(of) for name, of in members.items()}} if members else {}),
    }
    _claim(config, settings, accelerator)

    real = None if reference.images is None else features_of.kept(reference.images, reference.fingerprint)
    compared_with = reference.statistics if real is None else real
    assert compared_with is not None
    notes = intake.notes(extractor, next(iter(sets.values())).shape[1])
    of_held_out = None
    if held_out is not None and held_out.images is not None:
        of_held_out = features_of.kept(held_out.images, held_out.fingerprint)[: max(map(len, sets.values()))]
        notes += notes_on_held_out(held_out.images[: len(of_held_out)], reference, sets)
    evaluation = Evaluation(config.scored, extractor, compared_with, config.bootstrap, notes)
    scores: dict[str, dict[str, Score]] = {}
    copying: dict[str, CopyingTest] = {}
    of_classes: dict[str, ClassScores] = {}
    files: Files = {}
    for number, (name, images) in enumerate(sets.items(), start=1):
        fake = features_of.kept(images, fingerprints[name])
        if not accelerator.is_main_process:
            continue
        with Progress(f"scoring {name}", 1, "set", show_progress, leave=False):
            scores[name] = evaluation.score(fake)
        if members and real is not None:
            with Progress(f"scoring the classes of {name}", 1, "set", show_progress, leave=False):
                of_classes[name] = score_by_class(config.scored, extractor, fake, real, members[name], config.bootstrap)
        if of_held_out is not None and (test := evaluation.copying(fake, of_held_out)):
            copying[name] = test
        if reference.images is not None and real is not None:
            picture = partial(nearest_picture, images, fake, reference.images, real, display)
            path = config.output / ("nearest.png" if len(sets) == 1 else f"nearest-{number}.png")
            files[str(path)] = partial(_save_picture, picture, path)
    if not accelerator.is_main_process:
        return {}
    if config.save_statistics is not None and reference.images is not None and real is not None:
        statistics = partial(Statistics.of, real, features_of, tuple(reference.images.shape[1:]))
        path = config.save_statistics
        files = {str(path): lambda: statistics().save(path)} | files
    counts = {name: len(images) for name, images in sets.items()}
    if of_held_out is not None:
        scores[HELD_OUT], counts[HELD_OUT] = evaluation.score(of_held_out), len(of_held_out)
    return _results(config, evaluation.results(scores, counts, copying), settings, of_classes) | files


def _as_tuple(channels: list[int] | None) -> tuple[int, ...] | None:
    return None if channels is None else tuple(channels)


def _chosen(config: EvaluateConfig, *names: str) -> dict[str, Any]:
    """Those of the settings that are given; the manifests of others stay as they were before there were such."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _save_picture(picture: Callable[[], Image], path: Path) -> None:
    save_png(picture(), path)


def _shows_progress(config: EvaluateConfig, accelerator: Accelerator) -> bool:
    shown: bool = accelerator.is_main_process and not config.quiet
    if not (shown and has_terminal()):
        datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()  # that of loading a model's two parts
    return shown


def _claim(config: EvaluateConfig, settings: dict[str, Any], accelerator: Accelerator) -> None:
    """See that the folder is free or of the same settings, and write the manifest."""
    decided_by_main(accelerator, lambda: claim(config.output, settings, environment(accelerator)))


def _results(
    config: EvaluateConfig,
    results: Results,
    settings: dict[str, Any],
    of_classes: Mapping[str, ClassScores] | None = None,
) -> Files:
    """Print the results; what writes them."""
    classes = dict(of_classes or {})
    table = "\n".join([markdown_table(results), *(found.table(name) for name, found in classes.items())])
    print(table, flush=True)
    found = {**settings, **results.to_dict()}
    if classes:
        found["per_class"] = {name: scores.to_dict() for name, scores in classes.items()}
    metrics, readable = config.output / "metrics.json", config.output / "table.md"
    return {
        str(metrics): lambda: write_json(metrics, found),
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
