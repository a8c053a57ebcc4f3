"""Images that are no photographs: 16 bits in one channel, and five channels of floating point, learned in their units.

Each image holds one Gaussian blob of random place and height on a periodic square, so the moments of the data are known
in closed form. They are written as TIFF, trained on by the command (a minute), drawn by ddpm-hf-sample, saved as TIFF
again and read back. The moments of what was drawn are beside the true ones, in the units of the data; the error is what
chance leaves of as many true images (one standard deviation), so a perfect model lies within two or three of them.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.record import Bar, Record, table
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.sampling.one_image import TIFF

SIDE, WIDTH = 8, 1.0
"""Pixels of a side, and the standard deviation of a blob in pixels."""

TRAIN = Path(__file__).parents[1] / "train_accelerate.py"


@dataclass(frozen=True)
class Blobs:
    """A kind of image: channel c is ground_c + height * gain_c * blob, the height uniform in [1, 2].

    Args:
        dtype: Type of the values.
        ground: Of each channel.
        gain: Of each channel.
        options: Settings of training that the type needs.
    """

    dtype: str
    ground: tuple[float, ...]
    gain: tuple[float, ...]
    options: tuple[str, ...] = ()

    def draw(self, count: int, seed: int) -> npt.NDArray[Any]:
        """``(N, H, W, C)``."""
        rng = np.random.default_rng(seed)
        pixels = np.arange(SIDE)
        away = (pixels - rng.uniform(0, SIDE, (count, 2, 1)) + SIDE / 2) % SIDE - SIDE / 2
        bumps = np.exp(-(away**2) / (2 * WIDTH**2))
        blob = rng.uniform(1, 2, (count, 1, 1)) * bumps[:, 0, :, None] * bumps[:, 1, None, :]
        values = np.array(self.ground) + blob[..., None] * np.array(self.gain)
        found: npt.NDArray[Any] = (values.round() if self.dtype == "uint16" else values).astype(self.dtype)
        return found


KINDS = {
    "16 bits": Blobs("uint16", (1000.0,), (30_000.0,)),
    "five channels": Blobs(
        "float32", (0.0, 280.0, -1.0, 5e-3, 100.0), (1.0, 20.0, 0.5, 1e-2, -50.0), ("--data.value_range", "percentile")
    ),
}
"""The five channels have the units that a reflectance, a temperature, an index, a depth and a count might have."""


def moments_of(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Of ``(N, H, W, C)``, name -> one number for each channel, in the data's units."""
    values = images.astype(np.float64)
    mass = values.mean(axis=(1, 2))
    return {
        "mean": values.mean(axis=(0, 1, 2)),
        "deviation": values.std(axis=(0, 1, 2)),
        "deviation of an image's mean": mass.std(axis=0),
    }


def true_moments(kind: Blobs) -> dict[str, npt.NDArray[np.float64]]:
    """The same in closed form: a sum of Gaussians over all pixels of a periodic square is an integral, to 1e-8."""
    ground, gain = np.array(kind.ground), np.array(kind.gain)
    first = 2 * math.pi * WIDTH**2 / SIDE**2  # mean of a blob of height 1; half of it for its square
    height, squared = 1.5, 7 / 3  # means of the height and of its square
    mean = height * first
    return {
        "mean": ground + gain * mean,
        "deviation": np.abs(gain) * math.sqrt(squared * first / 2 - mean**2),
        "deviation of an image's mean": np.abs(gain) * first * math.sqrt(squared - height**2),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long to train."""
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row for each moment of each channel."""
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            drawn, seconds = learned(kind, Path(folder), arguments)
        spread = [moments_of(kind.draw(arguments.num_images, seed)) for seed in range(100, 150)]
        for moment, found in moments_of(drawn).items():
            for channel, value in enumerate(found):
                true = float(true_moments(kind)[moment][channel])
                error = float(np.std([draw[moment][channel] for draw in spread]))
                row = {"images": name, "moment": moment, "channel": channel, "true": true, "drawn": float(value)}
                record.add({**row, "error": error, "seconds": seconds, "type": str(drawn.dtype)})


def learned(kind: Blobs, folder: Path, arguments: argparse.Namespace) -> tuple[npt.NDArray[Any], float]:
    """Images of a model of such images, ``(N, H, W, C)`` as read from their files, and the seconds of its training."""
    (folder / "data").mkdir()
    for number, image in enumerate(kind.draw(2000, seed=0)):
        TIFF().write(folder / "data" / f"{number:04d}.tif", image)
    steps, threads = str(arguments.steps), str(arguments.threads or 1)
    train = [
        *(str(TRAIN), "--output_dir", str(folder / "run"), "--data.name", str(folder / "data"), "--quiet", "--threads"),
        *(threads, "--data.cache_dir", str(folder / "cache"), "--data.resolution", "null", *kind.options),
        *("--training.steps", steps, "--training.learning_rate", "2e-3", "--training.warmup_steps", "50"),
        *("--training.ema_decay", "0.99", "--training.sample_every", "null", "--evaluation.num_images", "4"),
        *("--model.block_out_channels", "[32,64]", "--model.norm_num_groups", "8"),
    ]
    sample = [
        *("-m", "ddpm_hf.cli.sample", "--model", str(folder / "run"), "--output", str(folder / "samples"), "--quiet"),
        *("--num_images", str(arguments.num_images), "--num_inference_steps", "50", "--threads", threads),
        *("--format", "tiff"),
    ]
    started = time.perf_counter()
    subprocess.run([sys.executable, *train], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    subprocess.run([sys.executable, *sample], check=True)
    return load_images(folder / "samples").permute(0, 2, 3, 1).numpy(), seconds


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """The moments of what was drawn, to a part of the data's own deviation."""
    found = []
    for name in KINDS:
        own = [row for row in rows if row["images"] == name]
        scale = {row["channel"]: row["true"] for row in own if row["moment"] == "deviation"}
        off = max(abs(row["drawn"] - row["true"]) / scale[row["channel"]] for row in own)
        found.append(
            Bar(f"{name}: a moment's distance from the true one, in deviations of the data", off, at_most=0.05)
        )
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each kind."""
    parts = []
    for name in KINDS:
        own = [row for row in rows if row["images"] == name]
        cells = [
            [row["moment"], row["channel"], f"{row['true']:.5g}", f"{row['drawn']:.5g} ± {row['error']:.2g}"]
            for row in own
        ]
        parts.append(f"{name} ({own[0]['type']}), {own[0]['seconds']:.0f} s of training:")
        parts.append(table(["moment", "channel", "true", "drawn ± chance"], cells))
    return "\n\n".join(parts)
