"""What a training step on the CIFAR-10 network costs beside the network, and what the data side can deliver.

The loop is the real one, of train_accelerate.py, logging at every step, with clocks round the network, the backward
pass and the optimizer. All else is batch, noise, loss, gradient norm, moving average and log. The last two rows make
the batch alone: ours reads the cache and draws noise, timesteps and flips too; the loader does what diffusers'
unconditional example does to every image (decode, crop, flip, normalise, with PIL on its way through a DataLoader),
and no more.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageOps

from benchmarks.record import Bar, Record, table
from ddpm_hf.command_line import parse_config
from ddpm_hf.training.log import read_log
from ddpm_hf.training.run import Run
from ddpm_hf.training.setup import build
from train_accelerate import train

BATCH_SIZE = 16
IMAGES = 2048
RECIPE = Path(__file__).parent.parent / "configs" / "train" / "cifar10.yaml"
REST, OUR_BATCH = "all else in the step", "a batch of ours"


class Clocks:
    """Seconds of each forward pass, backward pass and step of the optimizer, by the hooks that torch has for them."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
        self._started = 0.0

    def start(self, *_: Any) -> None:
        """A part begins."""
        self._started = time.perf_counter()

    def stop(self, part: str) -> None:
        """It has ended."""
        self.seconds[part].append(time.perf_counter() - self._started)

    def watch(self, training_run: Run) -> None:
        """Have the network and the optimizer of a run call the clocks."""
        model, optimizer = training_run.setup.model, training_run.state.optimizer.optimizer
        model.register_forward_pre_hook(self.start)
        model.register_forward_hook(lambda *_: self.stop("forward"))
        optimizer.register_step_pre_hook(self.start)
        optimizer.register_step_post_hook(lambda *_: self.stop("optimizer"))


class ClockedAccelerator(Accelerator):  # type: ignore[misc]  # accelerate is untyped
    """An accelerator that times the backward passes."""

    def __init__(self, clocks: Clocks) -> None:
        super().__init__(cpu=True)
        self._clocks = clocks

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """As accelerate's."""
        self._clocks.start()
        super().backward(loss, **kwargs)
        self._clocks.stop("backward")


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each part of a step, and one for a batch of each loader; the first step does not count."""
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.parquet"
        write_images(data)
        config = parse_config(
            [f"--data.name={data}", f"--data.cache_dir={folder}/cache", f"--output_dir={folder}/run", "--quiet"],
            default_recipe=RECIPE,
        )
        # Beside 16 images of a network this size the rest should vanish, so it is logged at every step.
        training = replace(config.training, batch_size=BATCH_SIZE, steps=rounds + 1, log_every=1, sample_every=None)
        clocks = Clocks()
        setup = build(replace(config, training=training), ClockedAccelerator(clocks))
        parts, wholes = step_times(Run(setup), clocks)
        loaders = {
            OUR_BATCH: batch_times((setup.batches.micro_batch(step, 0) for step in itertools.count()), rounds),
            "a batch of a per-image loader": batch_times(per_image_loader(data), rounds),
        }
    rest = [whole - sum(of_step) for whole, *of_step in zip(wholes, *parts.values(), strict=True)]
    for what, seconds in {"step": wholes, **parts, REST: rest, **loaders}.items():
        share = statistics.median(part / whole for part, whole in zip(seconds, wholes, strict=True))
        record.add({"what": what, "ms": 1000 * statistics.median(seconds), "share": share})


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the parts; shares are of the whole step, in the median over the steps."""
    return table(["part", "ms", "share of the step"], [(row["what"], row["ms"], row["share"]) for row in rows])


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Overhead of the loop, and the speed of the data side."""
    share = {row["what"]: row["share"] for row in rows}
    return [
        Bar("training loop, share of a CIFAR-10 step beside the network and its optimizer", share[REST], at_most=0.02),
        Bar("batches made while a CIFAR-10 step takes one", 1 / share[OUR_BATCH], at_least=50),
    ]


def step_times(training_run: Run, clocks: Clocks) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each part of each step and of each whole step, without the first."""
    clocks.watch(training_run)
    train(training_run)
    # The log's own pace, from line to line; what the last step saves comes after its line.
    lines = read_log(training_run.folder / "metrics.jsonl")
    wholes = [BATCH_SIZE / line["images_per_second"] for line in lines]
    return {part: seconds[1:] for part, seconds in clocks.seconds.items()}, wholes[1:]


def batch_times(batches: Any, rounds: int) -> list[float]:
    """Seconds that each batch takes to come, without the first."""
    iterator, seconds = iter(batches), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        next(iterator)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def per_image_loader(path: Path) -> Any:
    """Batches as diffusers' unconditional example makes them, with PIL and numpy in the place of torchvision."""
    flips = np.random.default_rng(0)

    def transform(image: PILImage.Image) -> torch.Tensor:
        image = ImageOps.fit(image.convert("RGB"), (32, 32), PILImage.Resampling.BILINEAR)
        image = ImageOps.mirror(image) if flips.random() < 0.5 else image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    dataset = Dataset.from_parquet(str(path)).with_transform(
        lambda examples: {"input": [transform(image) for image in examples["image"]]}
    )
    while True:
        yield from torch.utils.data.DataLoader(dataset, BATCH_SIZE, shuffle=True)


def write_images(path: Path) -> None:
    """A parquet file of PNGs of CIFAR-10's size, as the Hub holds them."""
    stream = np.random.default_rng(0)
    examples = []
    for _ in range(IMAGES):
        coarse = PILImage.fromarray(stream.integers(256, size=(8, 8, 3), dtype=np.uint8))
        content = io.BytesIO()
        coarse.resize((32, 32), PILImage.Resampling.BICUBIC).save(content, "PNG")
        examples.append({"bytes": content.getvalue(), "path": None})
    Dataset.from_dict({"image": examples}, features=Features({"image": Image()})).to_parquet(str(path))
