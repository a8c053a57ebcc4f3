"""Training on CIFAR-10 for equal seconds: our recipe (configs/train/cifar10.yaml in the loop of train_accelerate.py)
against a plain loop of diffusers' parts, with its example's settings (`plain_loop.py`).

The same network, batch size, mirroring, precision (bfloat16 autocast over TF32) and sampler; ours has the recipe's
learning rate, a warm-up cut to the plain loop's 500 steps, its optimizer, averages, and random numbers by seed and
step. They take turns, a slice each. FID is of images of the averaged weights against all training images, in the
features of a small classifier that is trained first: no other paper's figures compare with it. "held out" is that of as
many test images.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.gpu import cifar10
from benchmarks.gpu.racers import Plain, Racer, Recipe, recipe
from benchmarks.gpu.sizes import Sizes
from benchmarks.record import Record, table
from ddpm_hf.files import written_whole
from ddpm_hf.images import image_grid, save_png
from ddpm_hf.metrics import frechet_distance

PROBE = 256
"""Images drawn first, to know what drawing costs."""
SAVING = 5.0
"""Seconds kept for writing."""


def run(
    sizes: Sizes,
    device: torch.device,
    record: Record,
    attempt: Callable[..., None],
    data: Path | None,
    output: Path,
    state: Path,
    until: float,
) -> None:
    """The classifier, then the race for all the time that is left; rows of both racers at half time and at the end."""
    model = list(sizes.networks.values())[-1]
    train_images, test_images = (
        cifar10.load(data, split, model["sample_size"], sizes.images) for split in ("train", "test")
    )
    classifier = cifar10.trained_classifier(train_images, device, sizes.classifier_epochs)
    real = classifier.features(train_images.images)

    def fid(images: Tensor) -> float:
        return frechet_distance(real, classifier.features(images))

    key = {"part": "classifier", "data": train_images.name, "images": sizes.drawn}
    attempt(key, partial(judged, classifier, fid, test_images, sizes.drawn))
    accelerator = Accelerator(mixed_precision="bf16" if device.type == "cuda" else "no")
    config = recipe(model, sizes.race_batch)
    racers: dict[str, Racer] = {
        "ours": Recipe(config, train_images, accelerator),
        "plain": Plain(config, train_images, accelerator),
    }
    saved = state / "race.pt"
    if saved.exists():
        for name, content in torch.load(saved, map_location=device, weights_only=True).items():
            racers[name].load_state_dict(content)
    start = time.perf_counter()
    for racer in racers.values():
        racer.draw(min(PROBE, sizes.drawn), sizes.steps)
    of_drawing = 2 * (time.perf_counter() - start) * sizes.drawn / min(PROBE, sizes.drawn)
    each = max(1.0, until - time.perf_counter() - of_drawing - SAVING) / len(racers)
    planned = {name: racer.seconds + each for name, racer in racers.items()}
    print(f"{each:.0f} s of training each; drawing takes {of_drawing:.0f} s in all", flush=True)
    for slice_ in range(sizes.slices):
        for name in reversed(list(racers)) if slice_ % 2 else racers:
            racers[name].train_for(each / sizes.slices, planned[name])
        if slice_ + 1 in (sizes.slices // 2, sizes.slices):
            for name, racer in racers.items():
                grid = output / f"{name}-{racer.seconds:.0f}s.png"
                key = {"part": "race", "who": name, "seconds": round(racer.seconds, 1), "batch": sizes.race_batch}
                attempt(key, partial(scored, racer, fid, sizes, grid))
            with written_whole(saved) as temporary:
                torch.save({name: racer.state_dict() for name, racer in racers.items()}, temporary)


def judged(
    classifier: cifar10.Classifier, fid: Callable[[Tensor], float], data: Any, num_images: int
) -> dict[str, float]:
    """How well the classifier tells the classes, and the FID of real images that nothing was trained on."""
    return {"accuracy": classifier.accuracy(data), "held_out_fid": fid(data.images[:num_images])}


def scored(racer: Racer, fid: Callable[[Tensor], float], sizes: Sizes, grid: Path) -> dict[str, Any]:
    """A racer's state and FID; its first images go to a file."""
    images = racer.draw(sizes.drawn, sizes.steps)
    save_png(image_grid(images[:64]), grid)
    ms = 1000 * racer.seconds / max(1, racer.step)
    return {"step": racer.step, "ms_per_step": ms, "loss": racer.loss, "fid": fid(images), "grid": grid.name}


def report(rows: list[dict[str, Any]]) -> str:
    """The race, and what it is judged by."""
    lines = []
    judges = [row for row in rows if row["part"] == "classifier" and "accuracy" in row]
    for row in judges:
        lines.append(
            f"The classifier tells {row['accuracy']:.1%} of the test images; {row['images']:,} of them have an FID of "
            f"{row['held_out_fid']:.3f}."
        )
    names = ("who", "seconds", "step", "ms_per_step", "loss", "fid")
    found = [row for row in rows if row["part"] == "race" and "fid" in row]
    lines.append(
        table(["loop", "seconds", "steps", "ms a step", "loss", "FID"], [[row[n] for n in names] for row in found])
    )
    for ours, plain in itertools.pairwise(found):
        if (ours["who"], plain["who"]) == ("ours", "plain"):
            lines.append(
                f"After {ours['seconds']:.0f} s: ours over plain, steps {ours['step'] / plain['step']:.2f}, FID "
                f"{ours['fid'] / plain['fid']:.2f}."
            )
    return "\n\n".join(lines)
