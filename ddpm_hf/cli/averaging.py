"""What ddpm-hf-ema does, once its settings are known to be right."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import diffusers
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.cli.ema import EmaConfig
from ddpm_hf.command_line import config_of, fail
from ddpm_hf.data.sources import load_image_data
from ddpm_hf.files import hash_of, write_json, write_text
from ddpm_hf.launch import decided_by_main, each_on_its_own, environment, start_processes
from ddpm_hf.lock import only_writer
from ddpm_hf.manifest import claim, weights_hash
from ddpm_hf.metrics.evaluation import Results
from ddpm_hf.metrics.figures import save_scan
from ddpm_hf.metrics.table import HELD_OUT, SAMPLES, SCORES, scores_of
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.progress import has_terminal
from ddpm_hf.settings import check
from ddpm_hf.training.checkpoint_files import newest_complete, step_of
from ddpm_hf.training.checkpoints import save_pipeline
from ddpm_hf.training.optimization import prepare_network
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import evaluation_of
from ddpm_hf.training.snapshots import FOLDER, Average, Snapshot, average_of, range_of, snapshots_in


@dataclass(frozen=True)
class Trained:
    """What a run has left.

    Args:
        folder: The run's.
        config: Its settings.
        snapshots: Snapshots of its averages, oldest first.
        pipe: The pipeline of its end, or of its newest checkpoint.
        step: That of the checkpoint; None after the end.
    """

    folder: Path
    config: Config
    snapshots: list[Snapshot]
    pipe: DDPMCustomPipeline
    step: int | None

    @property
    def own_average(self) -> str:
        """The name of the average that the run has drawn with."""
        of_step = "" if self.step is None else f" at step {self.step}"
        return f"ema_decay {self.config.training.ema_decays[0]:g}{of_step}"

    def described(self) -> dict[str, Any]:
        """The manifest's entries for it."""
        last = self.snapshots[-1]
        return {
            "run": self.folder.resolve().name,
            "step": last.step,
            "updates": last.updates,
            "snapshots": {snapshot.path.name: hash_of(snapshot.path) for snapshot in self.snapshots},
        }


def run(config: EmaConfig) -> None:
    """Build the average or scan several, and say what was done; problems end the program."""
    try:
        accelerator = start_processes(config.threads)
        show_progress = accelerator.is_main_process and not config.quiet
        if not (show_progress and has_terminal()):
            datasets.disable_progress_bars()
        diffusers.utils.logging.disable_progress_bar()  # that of loading a model's two parts
        trained = load_run(config.run, accelerator)
        name = f"sigma_rel-{config.lengths[0]:g}" if config.scan is None else f"scan-{config.scan}"
        output = config.output or config.run / FOLDER / name
        with only_writer(output, accelerator):
            if config.scan is None:
                said = build(trained, config.lengths[0], output, accelerator)
            else:
                said = scan(trained, config, output, accelerator, show_progress)
        if accelerator.is_main_process:
            print(said)
        accelerator.end_training()
    except (ValueError, NotImplementedError, OSError) as error:
        fail(str(error))


def load_run(folder: Path, accelerator: Accelerator) -> Trained:
    """What a run has left, the same on all processes.

    Raises:
        ValueError: the folder is not that of a run, or of one that keeps no snapshots, or has none yet.
    """
    found: list[Trained] = []

    def find() -> tuple[list[Snapshot], Path, int | None]:
        recipe = folder / "config.yaml"
        check(recipe.is_file(), "run", folder, "the folder of a training run, which has a config.yaml")
        snapshots = snapshots_in(folder / FOLDER)
        if not snapshots:
            raise ValueError(
                f"{folder} has no snapshots of averages in {FOLDER}; they are made by a run with "
                "--training.ema_sigma_rels [0.05,0.1]"
            )
        if (folder / "model_index.json").is_file():
            return snapshots, folder, None
        newest = newest_complete(folder / "checkpoints")
        if newest is None:
            raise ValueError(f"{folder} has neither a model_index.json nor a complete checkpoint yet; wait for one")
        return snapshots, newest, step_of(newest)

    def load() -> None:
        config = config_of(["--config", str(folder / "config.yaml")], folder / "config.yaml")
        found.append(Trained(folder, config, snapshots, DDPMCustomPipeline.from_pretrained(source), step))

    snapshots, source, step = decided_by_main(accelerator, find)
    each_on_its_own(accelerator, load)
    return found[0]


def build(trained: Trained, length: float, output: Path, accelerator: Accelerator) -> str:
    """Write the pipeline of one average, and its manifest: what was done.

    Raises:
        ValueError: the snapshots do not give that length, or the folder holds something else.
    """

    def write() -> Average:
        average = average_of(trained.snapshots, length)
        tensors = average.tensors()
        _put(trained.pipe.unet, tensors)
        of_weights = {"weights_sha256": weights_hash(trained.pipe.unet)}
        settings = {**trained.described(), "sigma_rel": length, "profile_error": average.error, **of_weights}
        claim(output, settings, environment(accelerator))
        save_pipeline(output, trained.pipe.unet, {length: tensors}, trained.pipe.scheduler, trained.pipe.format)
        return average

    average = decided_by_main(accelerator, write)
    return (
        f"{output}: the average of sigma_rel {length:g} at step {trained.snapshots[-1].step}, of "
        f"{len(trained.snapshots)} snapshots; its profile is wrong by {_percent(average.error)}"
    )


def scan(trained: Trained, config: EmaConfig, output: Path, accelerator: Accelerator, show_progress: bool) -> str:
    """Score averages of several lengths, beside the run's own, and write the pipeline of the best: what was found.

    Raises:
        ValueError: the snapshots do not give a length that was asked for, or the run scores nothing.
    """
    assert config.scan is not None
    of_run = trained.config
    if config.num_images is not None:
        of_run = replace(of_run, evaluation=replace(of_run.evaluation, num_images=config.num_images))
    _check_scores(config, of_run)
    averages, note = _possible(trained.snapshots, config)
    unet = trained.pipe.unet.to(accelerator.device).eval()
    prepare_network(unet, of_run.training)
    data = load_image_data(of_run.data, show_progress)
    evaluation = evaluation_of(of_run, data, accelerator, show_progress)
    settings = {
        **trained.described(),
        "sigma_rels": [average.sigma_rel for average in averages],
        "scan": config.scan,
        "evaluation": of_run.to_dict()["evaluation"],
        "first_image_seed": evaluation.first_seed,
        "data": data.fingerprint,
    }
    decided_by_main(accelerator, lambda: claim(output, settings, environment(accelerator)))

    score = SCORES[config.scan]
    found: dict[str, Results] = {}
    hashes: dict[str, str] = {}
    best: tuple[Average, dict[str, Tensor]] | None = None
    for average in (None, *averages):
        name = trained.own_average if average is None else _name_of(average)
        if average is not None:
            tensors = average.tensors()
            _put(unet, tensors)
        hashes[name] = weights_hash(unet)
        found[name] = evaluation.score(evaluation.draw(unet, of_run.evaluation.num_images))
        value = found[name].of(SAMPLES)[score.name]
        if average is not None and score.is_better(
            value, than=found[_name_of(best[0])].of(SAMPLES)[score.name] if best else None
        ):
            best = average, tensors
        if show_progress:
            print(f"{name}: {score.name} {value:.4g}", file=sys.stderr, flush=True)
    if best is None:
        raise ValueError(f"no length has a {score.name} that is a number, so there is no best one")
    winner, tensors = best
    results = _together(found)
    table = _table(results, {_name_of(average): average.error for average in averages})
    values = {average.sigma_rel: results.of(_name_of(average))[score.name] for average in averages}
    lines = {trained.own_average: results.of(trained.own_average)[score.name]}
    if HELD_OUT in results.sets:
        lines["held-out images"] = results.of(HELD_OUT)[score.name]

    def write() -> None:
        about = {
            "best": winner.sigma_rel,
            "profile_errors": {_name_of(average): average.error for average in averages},
            "weights_sha256": hashes,
        }
        write_json(output / "metrics.json", {**settings, **about, **results.to_dict()})
        write_text(output / "table.md", table)
        save_scan(output / "scan.png", values, score, lines)
        save_pipeline(output, unet, {winner.sigma_rel: tensors}, trained.pipe.scheduler, trained.pipe.format)

    decided_by_main(accelerator, write)
    is_gain = score.is_better(values[winner.sigma_rel], than=lines[trained.own_average])
    verdict = "and" if is_gain else "and no length beats that of"
    return (
        f"{table}{note}\nThe best {score.name}, {values[winner.sigma_rel]:.4g}, is that of {_name_of(winner)}, "
        f"{verdict} {trained.own_average}"
        + (f" has {lines[trained.own_average]:.4g}" if is_gain else "")
        + f".\nIts pipeline is in {output}, with scan.png, table.md, metrics.json and manifest.json."
    )


def _check_scores(config: EmaConfig, of_run: Config) -> None:
    """See that the run's evaluation gives the score.

    Raises:
        ValueError: it does not.
    """
    if of_run.evaluation.extractor is None:
        raise ValueError(
            f"{config.run} scores no images (evaluation.extractor is null in its config.yaml), so a scan has nothing "
            "to go by; build averages with --sigma_rel, and score samples of each with ddpm-hf-evaluate"
        )
    names = scores_of(of_run.evaluation.metrics)
    check(config.scan in names, "scan", config.scan, f"a score of the run's evaluation.metrics: {', '.join(names)}")


def _possible(snapshots: list[Snapshot], config: EmaConfig) -> tuple[list[Average], str]:
    """The averages to scan, and a sentence where not all the usual lengths are among them.

    Raises:
        ValueError: a length that was asked for cannot be had.
    """
    if config.sigma_rel is not None:
        return [average_of(snapshots, length) for length in config.lengths], ""
    shortest, longest = range_of(snapshots)
    averages = [average_of(snapshots, length) for length in config.lengths if shortest <= length <= longest]
    note = f"\nNote: the snapshots give averages of sigma_rel from {shortest:.2g} to {longest:.2g}, and no others.\n"
    return averages, "" if len(averages) == len(config.lengths) else note


def _put(unet: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network averaged weights.

    Raises:
        ValueError: they are of another one.
    """
    shapes = {name: parameter.shape for name, parameter in unet.named_parameters()}
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError("the snapshots are of another network than the pipeline; remove those of an earlier run")
    unet.load_state_dict(tensors)


def _name_of(average: Average) -> str:
    return f"sigma_rel {average.sigma_rel:g}"


def _together(found: Mapping[str, Results]) -> Results:
    """Several results of one evaluation as one, with the held-out images once."""
    first = next(iter(found.values()))
    sets = {name: results.sets[SAMPLES] for name, results in found.items()}
    held_out = {HELD_OUT: first.sets[HELD_OUT]} if HELD_OUT in first.sets else {}
    counts = dict.fromkeys([*sets, *held_out], first.num_images[SAMPLES])
    return replace(first, sets=sets | held_out, num_images=counts, copying={})


def _table(results: Results, errors: Mapping[str, float]) -> str:
    """A row for each average, with the error of its profile, and for the held-out images."""
    heads = ["average", *results.names, "error of the profile"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, scores in results.sets.items():
        cells = [str(scores.get(column, "")) for column in results.names]
        lines.append(f"| {name} | {' | '.join(cells)} | {_percent(errors[name]) if name in errors else ''} |")
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
