"""Guidance: what it does to class-conditional digits, the accuracy of the asked class against diversity over the
scales.

The images are of ten classes in turn, in 50 steps with eta = 1. Accuracy is the share that the digits network takes for
the asked class (in the last columns of each class); the last row are real digits held out from training.

    accelerate launch train_accelerate.py --config configs/train/digits_conditional.yaml
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Record, table
from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.config import DataConfig
from ddpm_hf.data import load_cached_images
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, precision_recall
from ddpm_hf.sampling import sample_images

CLASSES = 10


def figures(images: Tensor, labels: Tensor, real: Tensor, network: DigitsFeatures) -> dict[str, Any]:
    """Scores of images that were asked to be of these classes.

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it draws."""
    parser.add_argument("--model", type=Path, default=Path("runs/digits_conditional"))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument("--num_images", type=int, default=500, help="as many as there are held-out digits")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row for each scale, and one of real digits."""
    network = DigitsFeatures.load()
    train, held_out = (load_cached_images(DataConfig(split=split)) for split in ("train", "test"))
    assert held_out.labels is not None
    real = network(train.images)
    pipe = DDPMCustomPipeline.from_pretrained(arguments.model)
    pipe.scheduler.set_timesteps(50)
    count = arguments.num_images
    labels = torch.arange(count) % CLASSES
    for scale in arguments.scales:
        images = sample_images(
            pipe.unet,
            pipe.scheduler,
            count,
            seed=arguments.seed,
            class_labels=labels,
            guidance_scale=scale,
            eta=1.0,
        )
        record.add({"scale": scale, **figures(images, labels, real, network)})
    record.add({"scale": "real", **figures(held_out.images[:count], held_out.labels[:count], real, network)})


def report(rows: list[dict[str, Any]]) -> str:
    """One table."""
    keys = ("accuracy", "fid", "precision", "recall")
    heads = ["guidance", "accuracy", "FID", "precision", "recall", *map(str, range(CLASSES))]
    return table(heads, [[row["scale"], *(row[key] for key in keys), *row["of_each_class"]] for row in rows])
