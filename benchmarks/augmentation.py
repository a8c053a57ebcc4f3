"""Augmentation where images are few: the digits' recipe by Adam, shortened, on 200 of the digits, without and with
Karras et al.'s augmentation.

Mean ± standard deviation over the seeds. Every run is a training run of its own, and what is in the file of results
already is not run again. FID, precision and recall compare 500 samples with the 500 digits of the test split, none of
which is trained on; the held-out loss is that of the same digits as they are, always with the same noise. Copies is the
share of the samples that are nearer to a training digit than to any held-out one, where 200 / 700 would be chance.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.record import Bar, Record, over_seeds, table
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, precision_recall
from ddpm_hf.training.log import read_log
from ddpm_hf.training.run import Run
from ddpm_hf.training.setup import build
from train_accelerate import train

RECIPE = Path(__file__).with_name("digits_adam.yaml")
IMAGES = 200
SAMPLES = 500
ROUNDS = 3
"""Scores during a run, the last at its end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Length and number of runs."""
    parser.add_argument("--steps", type=int, default=900, help="of each run; a multiple of 3")
    parser.add_argument("--probabilities", type=float, nargs="+", default=[0.0, 0.12])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each probability and seed."""
    record.resume()
    accelerator = Accelerator(cpu=True)
    for seed in arguments.seeds:
        for probability in arguments.probabilities:
            key = {"probability": probability, "seed": seed, "steps": arguments.steps}
            if record.find(**key) is None:
                record.add({**key, **measure(probability, seed, arguments.steps, accelerator)})


def measure(probability: float, seed: int, steps: int, accelerator: Accelerator) -> dict[str, Any]:
    """Train one run, and return its figures, most of them by step."""
    every, scores = steps // ROUNDS, {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "seed": seed,
            "output_dir": folder,
            "threads": 1,
            "data.split": f"train[:{IMAGES}]",
            "data.augment_probability": probability,
            "training.steps": steps,
            "training.sample_every": "null",
            "training.checkpoint_every": "null",
            "evaluation.extractor": "null",
            "evaluation.loss_every": every,
            "evaluation.num_images": SAMPLES,
            "evaluation.num_inference_steps": 25,
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        run = Scored(build(parse_config([*words, "--quiet"], RECIPE), accelerator), every)
        train(run)
        scores = run.scores
        lines = read_log(Path(folder) / "metrics.jsonl")
    return {
        "held_out_loss": {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line},
        "loss": [line["loss"] for line in lines if line.get("loss")][-1],
        "scores": scores,
        "seconds": run.seconds["training"],
    }


class Scored(Run):
    """A run that compares its samples with the held-out digits every so many steps."""

    def __init__(self, setup: Any, every: int) -> None:
        super().__init__(setup)
        self._every = every
        self.scores: dict[int, dict[str, float]] = {}

    def look_at_held_out(self) -> None:
        """As ever, and the scores."""
        super().look_at_held_out()
        with self.state.ema.averaged_weights():
            self.scores[self.state.step] = scores_of(self.setup.evaluation.draw(self.state.unet, SAMPLES))


def scores_of(images: torch.Tensor) -> dict[str, float]:
    """FID, precision, recall and the share of copies of samples, uint8 ``(N, 1, 8, 8)``."""
    network = DigitsFeatures.load()
    trained, held_out = (
        network(load_cached_images(DataConfig(split=split)).images) for split in (f"train[:{IMAGES}]", "test")
    )
    features = network(images)
    precision, recall = precision_recall(held_out, features)
    nearest = torch.cdist(features, torch.cat([trained, held_out])).argmin(dim=1)
    copies = (nearest < IMAGES).double().mean().item()
    fid = frechet_distance(features, held_out)
    return {"fid": fid, "precision": precision, "recall": recall, "copies": copies}


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the probabilities."""
    steps = list(rows[0]["scores"])
    heads = ["augment_probability", *(f"FID at {step}" for step in steps)]
    heads += [*(f"held-out loss at {step}" for step in steps), "training loss", "precision", "recall", "copies"]
    cells = []
    for probability in sorted({row["probability"] for row in rows}):
        runs = [row for row in rows if row["probability"] == probability]

        def mean(*path: str, digits: int = 2, runs: list[Mapping[str, Any]] = runs) -> str:  # type: ignore[assignment]
            return over_seeds([_at(run, *path) for run in runs], digits)

        cells.append(
            [
                f"{probability:g}",
                *(mean("scores", step, "fid") for step in steps),
                *(mean("held_out_loss", step, digits=3) for step in steps),
                mean("loss", digits=3),
                *(mean("scores", steps[-1], name) for name in ("precision", "recall", "copies")),
            ]
        )
    return table(heads, cells)


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """What augmentation is for: less learned by heart, and more known of other digits."""
    steps = list(rows[0]["scores"])[-1]

    def ratio(*path: str) -> float:
        with_it, without = (
            statistics.fmean(_at(row, *path) for row in rows if (row["probability"] > 0) == augmented)
            for augmented in (True, False)
        )
        return with_it / without

    return [
        Bar("200 digits, held-out loss with augmentation over without", ratio("held_out_loss", steps), at_most=0.95),
        Bar("200 digits, recall with augmentation over without", ratio("scores", steps, "recall"), at_least=1.25),
        Bar("200 digits, FID with augmentation over without", ratio("scores", steps, "fid"), at_most=1),
    ]


def _at(row: Any, *path: str) -> float:
    for name in path:
        row = row[name]
    return float(row)
