"""What a model of other images is worth: FID over steps on 200 digits, from random weights and from a network of the
same size that has learned Fashion-MNIST at 8x8.

Both start into the same run, with the same batches and noise, by Adam at a learning rate of 0.002; it is constant, so
each mark is where a run of that length ends. FID is of 500 images in 20 steps with eta = 1, in the features of the
digits network, against the 1,597 digits that were not trained on. Mean ± standard deviation over the seeds. Steps to
an FID are where the mean gets there, on straight lines between the marks. Other learning rates, on one seed, show
whether the comparison hangs on that one.
"""

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.record import Bar, Record, over_seeds, table
from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.manifest import weights_hash
from ddpm_hf.metrics import DigitsFeatures, FrechetDistance
from ddpm_hf.training.run import Run
from ddpm_hf.training.setup import build
from train_accelerate import train

RECIPE = Path(__file__).with_name("digits_adam.yaml")
LEARNED, NUM_IMAGES, INFERENCE_STEPS = 200, 500, 20
BASE_STEPS, STEPS, MARKS = 1500, 800, (50, 100, 200, 300, 400, 600, 800)
LEARNING_RATE, OTHER_RATES = 2e-3, (5e-4, 1e-3, 4e-3)
TARGETS = (16, 12, 10, 8)
SEEDS = (0, 1, 2)
STARTS = ("random", "fashion_mnist")
COMMON = [
    *("--model.block_out_channels", "[16,32]", "--model.norm_num_groups", "8", "--threads", "1", "--quiet"),
    *("--evaluation.extractor", "null", "--evaluation.held_out_split", "null", "--training.sample_every", "null"),
    *("--evaluation.num_images", "1", "--evaluation.grid_images", "1"),
]
BRIEF = [
    *("--data.split", f"train[:{LEARNED}]", "--training.steps", str(STEPS), "--training.lr_schedule", "constant"),
    *("--training.batch_size", "32", "--training.checkpoint_every", "50"),
    *("--training.checkpoints_total_limit", str(STEPS)),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images of the base model lie."""
    parser.add_argument("--fashion_mnist", type=Path, required=True, help="its folder of parquet files")
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row for the base model, and one for each start, learning rate and seed."""
    record.resume()
    accelerator, fid = Accelerator(cpu=True), _distance()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        data = ["--data.name", str(arguments.fashion_mnist), "--data.resolution", "8"]
        ended(base, accelerator, *data, "--training.steps", str(BASE_STEPS), "--training.checkpoint_every", "null")
        pipe = DDPMCustomPipeline.from_pretrained(base)
        key = {"start": "fashion_mnist", "steps": BASE_STEPS, "weights": weights_hash(pipe.unet)}
        if record.find(**key) is None:
            digits = load_cached_images(DataConfig(split=f"train[:{LEARNED}]")).images
            record.add({**key, "fid": fid_of(pipe, fid), "fid_of_learned_digits": _fid_of(digits, fid)})
        for seed in SEEDS:
            for start in STARTS:
                for rate in (LEARNING_RATE, *(OTHER_RATES if seed == SEEDS[0] else ())):
                    key = {"start": start, "seed": seed, "learning_rate": rate, "batch_size": 32}
                    if record.find(**key) is not None:
                        continue
                    place = Path(folder) / f"{start}-{seed}-{rate}"
                    words = ["--seed", str(seed), "--training.learning_rate", str(rate), *BRIEF]
                    ended(place, accelerator, *words, *(["--init_from", str(base)] if start != "random" else []))
                    pipes = {mark: place / "checkpoints" / f"step-{mark}" for mark in MARKS}
                    marks = {
                        str(mark): fid_of(DDPMCustomPipeline.from_pretrained(at), fid) for mark, at in pipes.items()
                    }
                    record.add({**key, "marks": marks})


def ended(folder: Path, accelerator: Accelerator, *words: str) -> None:
    """Train a run to its end."""
    run = Run(build(parse_config([*COMMON, *words, "--output_dir", str(folder)], RECIPE), accelerator))
    train(run)
    run.finish(*run.score())


def marks_of(checkpoints: Path, fid: FrechetDistance) -> dict[str, float]:
    """Mark -> FID."""
    pipes = {mark: DDPMCustomPipeline.from_pretrained(checkpoints / f"step-{mark}") for mark in MARKS}
    return {str(mark): fid_of(pipe, fid) for mark, pipe in pipes.items()}


def _distance() -> FrechetDistance:
    fid = FrechetDistance(DigitsFeatures.load(), reset_real_features=False)
    for split in (f"train[{LEARNED}:]", "test"):
        fid.update(load_cached_images(DataConfig(split=split)).images, real=True)
    return fid


def fid_of(pipe: Any, fid: FrechetDistance) -> float:
    """FID of images that a pipeline draws, always from the same seeds."""
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": INFERENCE_STEPS, "eta": 1.0, "output_type": "uint8"}
    return _fid_of(pipe(seeds=range(NUM_IMAGES), **options).images, fid)


def _fid_of(images: torch.Tensor, fid: FrechetDistance) -> float:
    fid.reset()
    fid.update(images, real=False)
    return float(fid.compute()["fid"])


def curve_of(rows: list[dict[str, Any]], start: str, rate: float = LEARNING_RATE) -> dict[int, list[float]]:
    """Mark -> the FIDs of all seeds."""
    runs = [row for row in rows if row["start"] == start and row.get("learning_rate") == rate]
    return {mark: [row["marks"][str(mark)] for row in runs] for mark in MARKS}


def steps_to(target: float, curve: dict[int, list[float]]) -> float | None:
    """Where the mean first gets down to a target, on straight lines between the marks; None if it does not."""
    means = [(mark, statistics.fmean(fids)) for mark, fids in curve.items()]
    if means[0][1] <= target:
        return float(means[0][0])
    for (before, high), (after, low) in pairwise(means):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low)
    return None


def report(rows: list[dict[str, Any]]) -> str:
    """FID at each mark, steps to some FIDs, and the same at other learning rates."""
    heads = ["from random weights", "from Fashion-MNIST"]
    curves = [curve_of(rows, start) for start in STARTS]
    base = next(row for row in rows if "weights" in row)
    lines = [[str(mark), *(over_seeds(curve[mark]) for curve in curves)] for mark in MARKS]
    ends = [statistics.fmean(curves[0][MARKS[-1]])]
    steps = {target: [steps_to(target, curve) for curve in curves] for target in (*TARGETS, *ends)}
    others = []
    for rate in sorted((LEARNING_RATE, *OTHER_RATES)):
        at_rate = [curve_of(rows, start, rate) for start in STARTS]
        others.append([f"{rate:g}", *(curve[mark][0] for mark in (MARKS[-1] // 2, MARKS[-1]) for curve in at_rate)])
    at = [f"{head}, {mark} steps" for mark in (MARKS[-1] // 2, MARKS[-1]) for head in heads]
    return "\n\n".join(
        [
            table(["steps", *heads], [["0", "", f"{base['fid']:.2f}"], *lines]),
            table(["steps to", *heads, "ratio"], [[f"FID {t:.4g}", *n, _ratio(*n)] for t, n in steps.items()]),
            f"FID at other learning rates, seed {SEEDS[0]}:",
            table(["learning rate", *at], others),
            f"The {LEARNED} digits themselves have an FID of {base['fid_of_learned_digits']:.2f}.",
        ]
    )


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Steps from random weights over those from the other model, to the FID at which the former end."""
    random, tuned = (curve_of(rows, start) for start in STARTS)
    target = statistics.fmean(random[MARKS[-1]])
    what = f"{LEARNED} digits: to the FID from random weights after {MARKS[-1]} steps ({target:.2f}), these steps over"
    ratio = _ratio(float(MARKS[-1]), steps_to(target, tuned))
    return [Bar(f"{what} those from a model of Fashion-MNIST", ratio or 0.0, at_least=2)]
