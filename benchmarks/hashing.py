"""What the hashes of a checkpoint cost: a save of the CIFAR-10 network with and without them, and other algorithms.

A checkpoint of 35.7 million parameters holds four times their size: the weights, their average and two moments. Both
kinds of save go to the same disk, in turn, and wait until it has them. Hashes are made while the disk takes the files;
the share is that of the time within a save for which hashes alone keep it waiting, and so free of the disk's ups and
downs, which the ratio is not.

The other table is of one file of the size of the weights, read from memory, as it is right after it was written.
"""

import argparse
import copy
import hashlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator

from benchmarks.measure import in_turn, ratio_of
from benchmarks.record import Bar, Record, table
from ddpm_hf import DDIMScheduler, UNet2DModel
from ddpm_hf.command_line import parse_config
from ddpm_hf.diffusion.timestep_sampling import timestep_sampler
from ddpm_hf.files import hash_of, sync_tree
from ddpm_hf.training.checkpoints import Checkpoints, TrainingState
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.optimization import make_optimizer

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "cifar10.yaml"
USES = ("ddpm_hf.files.hash_of", "ddpm_hf.training.checkpoint_files.hash_of")
"""Where a save calls it."""
SYNC = "ddpm_hf.training.checkpoints.sync_tree"
ALGORITHMS: dict[str, Callable[[Path], object]] = {
    "XXH3, 128 bits": hash_of,
    "SHA-256": lambda path: _digest(path, "sha256"),
    "BLAKE2b": lambda path: _digest(path, "blake2b"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; that of temporary files")


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for the saves, and one for each algorithm."""
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        record.add({"what": "save", **saves(Path(folder), arguments.rounds)})
        (weights,) = Path(folder).glob("step-1/training/weights.safetensors")
        gigabytes = weights.stat().st_size / 1e9
        calls = {name: _seconds_of(hashed, weights) for name, hashed in ALGORITHMS.items()}
        for name, seconds in in_turn(calls, arguments.rounds).items():
            record.add({"what": name, "gigabytes": gigabytes, "gb_per_second": gigabytes / statistics.median(seconds)})


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the save and one of the algorithms."""
    (save,) = (row for row in rows if row["what"] == "save")
    spread = f"{save['ratio']:.3f} ({save['ratio_low']:.3f} to {save['ratio_high']:.3f})"
    saved = [save["gigabytes"], save["with"], save["without"], spread, save["in_hashes"], f"{save['share']:.2%}"]
    heads = ["checkpoint, GB", "seconds", "without hashes", "ratio", "in hashes", "waiting for hashes"]
    others = [[row["what"], row["gb_per_second"]] for row in rows if row["what"] in ALGORITHMS]
    return "\n\n".join([table(heads, [saved]), table(["algorithm", "GB/s"], others)])


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Issue 19's."""
    return [
        Bar("share of a checkpoint's time that waits for hashes", row["share"], at_most=0.02)
        for row in rows
        if "share" in row
    ]


def saves(folder: Path, rounds: int) -> dict[str, float]:
    """Save the same state again and again, in turn with and without hashes."""
    state = state_of_recipe()
    checkpoints = Checkpoints(folder, 1, Accelerator(cpu=True))
    clock = Clock()

    def save(hashed: Callable[[Path], str]) -> Clock:
        with patch(USES[0], hashed), patch(USES[1], hashed), patch(SYNC, clock.sync_tree):
            clock.start()
            checkpoints.save(state, DDIMScheduler(), {})
            return clock.stop()

    found = in_turn({"with": lambda: save(clock.hash_of), "without": lambda: save(lambda path: "")}, rounds)
    with_them, without = ([times.seconds for times in found[name]] for name in ("with", "without"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "gigabytes": size / 1e9,
        "with": statistics.median(with_them),
        "without": statistics.median(without),
        **ratio_of(with_them, without),
        "in_hashes": statistics.median(times.in_hashes for times in found["with"]),
        "share": statistics.median(times.waiting / times.seconds for times in found["with"]),
    }


class Clock:
    """Takes the times of a save.

    Attributes:
        seconds: Of all of it.
        in_hashes: Of all hashes.
        waiting: Of those that are made before the disk is asked to take the files, or end after it has them.
    """

    def start(self) -> None:
        """Begin a save."""
        self.in_hashes = self.waiting = 0.0
        self._start, self._end_of_hashes, self._end_of_sync = time.perf_counter(), 0.0, 0.0

    def hash_of(self, path: Path) -> str:
        """The product's, timed."""
        start = time.perf_counter()
        digest = hash_of(path)
        self._end_of_hashes = time.perf_counter()
        self.in_hashes += self._end_of_hashes - start
        if threading.current_thread() is threading.main_thread():
            self.waiting += self._end_of_hashes - start
        return digest

    def sync_tree(self, folder: Path) -> None:
        """The product's, timed."""
        sync_tree(folder)
        self._end_of_sync = time.perf_counter()

    def stop(self) -> "Clock":
        """End a save; its times."""
        self.seconds = time.perf_counter() - self._start
        self.waiting += max(0.0, self._end_of_hashes - self._end_of_sync)
        return copy.copy(self)


def state_of_recipe() -> TrainingState:
    """That of the recipe after a step."""
    config = parse_config([], RECIPE)
    unet = UNet2DModel(**config.model)
    optimizer = make_optimizer(unet.parameters(), config.training)
    for parameter in unet.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    timesteps = timestep_sampler(config.training.timestep_sampling, 1000, config.training.batch_size)
    return TrainingState(unet, optimizer, EMA(unet.parameters(), config.training.ema_decays), timesteps, step=1)


def _seconds_of(hashed: Callable[[Path], object], path: Path) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        hashed(path)
        return time.perf_counter() - start

    return seconds


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
