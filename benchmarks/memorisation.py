"""A model that learns its images by heart is caught, and one of many images is not: the digits' recipe by Adam on all
1,297 training images, and for as many steps on 100 of them.

The loss on the 500 held-out images is taken every 100 steps, with the same noise each time. At the end 500 samples and
the 500 held-out images are compared by their distances to the nearest training image, in the features of the digits
network and in those of `pixels`, which no training image has taught anything: authenticity (Alaa et al. 2022), and the
rank-sum test of Meehan et al. (2020), which says how often a sample is nearer than a held-out image and how likely that
is by chance. The pictures have samples on the left, each beside the training images nearest to it, with their distances
in the features of the digits network. Both runs together take nine minutes of one core.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.record import Bar, Record, table
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.images import save_png
from ddpm_hf.launch import start_processes
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.intake import Intake
from ddpm_hf.metrics.memorisation import SUSPICIOUS, authentic, copying_test
from ddpm_hf.metrics.results import nearest_picture
from ddpm_hf.training.log import read_log
from ddpm_hf.training.run import Run
from ddpm_hf.training.setup import build
from train_accelerate import train

RECIPE = Path(__file__).with_name("digits_adam.yaml")
SPLITS = {1297: "train", 100: "train[:100]"}
SETTINGS = [
    *("--evaluation.loss_every", "100", "--training.sample_every", "null", "--training.checkpoint_every", "null"),
    *("--threads", "1", "--quiet"),
]
FEATURES = ("digits", "pixels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Steps and pictures."""
    parser.add_argument("--steps", type=int, default=None, help="the recipe's own when not given")
    parser.add_argument("--pictures", type=Path, default=Path("docs"), help="folder of memorisation-N.png")
    parser.set_defaults(rounds=None, threads=1)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each number of training images; those that the file has already stay."""
    record.resume()
    for count, split in SPLITS.items():
        if record.find(images=count) is None:
            record.add({"images": count, **measured(split, arguments.steps, arguments.pictures)})


def measured(split: str, steps: int | None, pictures: Path) -> dict[str, Any]:
    """Losses and tests of a model that is trained on a part of the digits.

    Args:
        split: The part.
        steps: Steps; None for those of the recipe.
        pictures: Folder of the picture of samples beside training images.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = [*SETTINGS, "--data.split", split, "--output_dir", folder]
        settings += [] if steps is None else ["--training.steps", str(steps)]
        config = parse_config(settings, RECIPE)
        setup = build(config, start_processes(config.threads))
        living = Run(setup)
        train(living)
        results, images = living.score()
        lines = read_log(config.output_dir / "metrics.jsonl")
    data = setup.data
    assert isinstance(data, ImageData)
    held_out = load_cached_images(DataConfig(split="test")).images[: len(images)]
    save_png(_picture(images, data.images), pictures / f"memorisation-{len(data)}.png")
    curves = {
        name: {str(line["step"]): line[key] for line in lines if line.get(key) is not None}
        for name, key in (("training_loss", "loss"), ("held_out_loss", "held_out_loss"))
    }
    return {
        "steps": config.training.steps,
        "seconds": living.seconds,
        **curves,
        "scores": results.scores,
        "tests": {name: tested(name, data.images, images, held_out) for name in FEATURES},
    }


def tested(extractor: str, train_images: Tensor, samples: Tensor, held_out: Tensor) -> dict[str, float]:
    """Authenticity of both, and the test for copies, in some features."""
    train_features, *others = (_features(extractor, images) for images in (train_images, samples, held_out))
    test = copying_test(train_features, *others)
    shares = [authentic(train_features, features).double().mean().item() for features in others]
    return {"authenticity": shares[0], "authenticity_held_out": shares[1], **vars(test)}


@torch.no_grad()
def _features(name: str, images: Tensor) -> Tensor:
    extractor = load_extractor(name)
    features: Tensor = extractor(Intake()(images, extractor))
    return features


def _picture(samples: Tensor, train_images: Tensor) -> Image.Image:
    return nearest_picture(samples, _features("digits", samples), train_images, _features("digits", train_images))


def lowest(curve: dict[str, float]) -> tuple[int, float]:
    """The step and the value of the lowest loss."""
    step = min(curve, key=lambda step: curve[step])
    return int(step), curve[step]


def last(curve: dict[str, float]) -> float:
    """The loss of the last step."""
    return curve[max(curve, key=int)]


def report(rows: list[dict[str, Any]]) -> str:
    """Losses, tests, and curves."""
    losses = []
    for row in rows:
        step, value = lowest(row["held_out_loss"])
        of_test = last(row["held_out_loss"])
        losses.append([row["images"], last(row["training_loss"]), value, step, of_test, of_test / value])
    tests = [
        [row["images"], name, *(f"{test[key]:.3f}" for key in ("authenticity", "authenticity_held_out")),
         f"{test['share_nearer']:.1%}", test["samples"], test["held_out"], f"{test['p_value']:.2g}"]
        for row in rows
        for name, test in row["tests"].items()
    ]  # fmt: skip
    marks = [step for step in rows[0]["held_out_loss"] if int(step) % 400 == 0] if rows else []
    curves = [
        [f"{row['images']}, {name.removesuffix('_loss').replace('_', ' ')}", *(row[name].get(step) for step in marks)]
        for row in rows
        for name in ("training_loss", "held_out_loss")
    ]
    pictures = [f"![Samples of the model of {row['images']} images](memorisation-{row['images']}.png)" for row in rows]
    parts = [
        table(["trained on", "loss", "held out: lowest", "at step", "last", "last / lowest"], losses),
        table(
            ["trained on", "features", "authenticity", "of held-out", "samples nearer in", "median distance",
             "of held-out", "p"],
            tests,
        ),
        table(["loss at step", *marks], curves),
        *pictures,
    ]  # fmt: skip
    return "\n\n".join(parts)


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """The copyist is caught by every sign, the model of all images by none."""
    found = []
    for row in rows:
        is_small, what = row["images"] == min(SPLITS), f"Memorisation, {row['images']:,} digits"
        for name, test in row["tests"].items():
            limit = {"at_most": SUSPICIOUS} if is_small else {"at_least": SUSPICIOUS}
            found.append(Bar(f"{what}: p-value of the test for copies, in {name}", test["p_value"], **limit))
            ratio = test["authenticity"] / test["authenticity_held_out"]
            limit = {"at_most": 0.5} if is_small else {"at_least": 0.9}
            found.append(Bar(f"{what}: authenticity over that of held-out images, in {name}", ratio, **limit))
        rise = last(row["held_out_loss"]) / lowest(row["held_out_loss"])[1]
        limit = {"at_least": 1.2} if is_small else {"at_most": 1.05}
        found.append(Bar(f"{what}: held-out loss over its lowest", rise, **limit))
    return found
