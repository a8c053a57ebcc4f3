"""Guidance of class-conditional digits: accuracy against diversity, over guidance scales and the noise levels sigma at
which there is guidance.

    accelerate launch train_accelerate.py --config configs/train/digits_conditional.yaml
    python -m benchmarks guidance --model runs/digits_conditional

Images of ten classes in turn, in 50 steps with eta 1. Accuracy is the share of images that the digits network assigns
to the requested class, for all images and for each class. The last row is of real digits held out from training.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Record, table
from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, precision_recall
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images

CLASSES = 10
INTERVALS = [(0.2, 1.0), (0.2, 2.0), (0.5, 2.0), (0.5, 5.0)]
"""Noise levels above the lower and up to the higher one; the sampler goes from infinity to 0.1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the scales and the images."""
    parser.add_argument("--model", type=Path, default=Path("runs/digits_conditional"))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument(
        "--interval_scales", type=float, nargs="*", default=[2.0, 3.0], help="those tried with intervals"
    )
    parser.add_argument("--num_images", type=int, default=500, help="as many as there are held-out digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each scale, and one for real digits."""
    network = DigitsFeatures.load()
    train, held_out = (load_cached_images(DataConfig(split=split)) for split in ("train", "test"))
    real = network(train.images)
    pipe = DDPMCustomPipeline.from_pretrained(arguments.model)
    pipe.scheduler.set_timesteps(50)
    labels = torch.arange(arguments.num_images) % CLASSES
    cases: list[tuple[float, tuple[float, float] | None]] = [(scale, None) for scale in arguments.scales]
    cases += [(scale, interval) for scale in arguments.interval_scales for interval in INTERVALS]
    for scale, interval in cases:
        images = sample_images(
            pipe.unet,
            pipe.scheduler,
            range(arguments.seed, arguments.seed + arguments.num_images),
            SamplingOptions(eta=1.0, guidance_scale=scale, guidance_interval=interval),
            class_labels=labels,
        )
        record.add({"scale": scale, "interval": interval, **figures(images, labels, real, network)})
    assert held_out.labels is not None
    count = arguments.num_images
    record.add({"scale": "real", **figures(held_out.images[:count], held_out.labels[:count], real, network)})


def figures(images: Tensor, labels: Tensor, real: Tensor, network: DigitsFeatures) -> dict[str, Any]:
    """Scores of images that should show these classes.

    Args:
        images: uint8 (N, 1, 8, 8).
        labels: int64 (N,).
        real: features of the training images.
        network: the digits network.
    """
    features = network(images)
    is_right = (network.logits(features).argmax(dim=1) == labels).float()
    precision, recall = precision_recall(real, features)
    return {
        "accuracy": is_right.mean().item(),
        "of_each_class": [is_right[labels == label].mean().item() for label in range(CLASSES)],
        "fid": frechet_distance(features, real),
        "precision": precision,
        "recall": recall,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the scales."""
    heads = ["guidance", "at sigma", "accuracy", "FID", "precision", "recall", *map(str, range(CLASSES))]
    cells = []
    for row in rows:
        numbers = [row["accuracy"], row["fid"], row["precision"], row["recall"], *row["of_each_class"]]
        interval = row.get("interval")
        levels = f"{interval[0]:g} to {interval[1]:g}" if interval else "all" if row["scale"] not in ("real", 1) else ""
        cells.append([str(row["scale"]), levels, *(f"{number:.3f}" for number in numbers)])
    return table(heads, cells)
