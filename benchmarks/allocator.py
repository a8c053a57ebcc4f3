"""A training step, optimizer included, where freed memory stays with the process, as in every run of this package on a
CPU (`keep_freed_memory` of [launch.py](../ddpm_hf/launch.py)), against glibc's defaults.

Each figure is of a new process. Page faults are the times that the kernel had to find and clear a page of memory.
"""

import argparse
import resource
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.measure import MIB, in_new_process, in_turn, milliseconds, peak_memory, ratio_cell, ratio_of
from benchmarks.record import Record, table
from benchmarks.unet import CIFAR10, DIGITS, inputs, set_gradients
from ddpm_hf import UNet2DModel
from ddpm_hf.launch import keep_freed_memory

CASES = [("digits", DIGITS, 64, 40), ("CIFAR-10", CIFAR10, 8, 6)]
"""Name, settings, batch size, and steps of a round."""
FIGURES = ("ms", "page_faults", "peak_mib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.set_defaults(rounds=5)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each network."""
    for name, config, batch_size, steps in CASES:
        of_this = (config, batch_size, steps, torch.get_num_threads())
        ways = {way: partial(in_new_process, figures_of_a_step, way == "kept", *of_this) for way in ("kept", "default")}
        found = in_turn(ways, arguments.rounds, is_warm=True)
        medians = {
            f"{way}_{figure}": statistics.median(values)
            for way, rounds in found.items()
            for figure, values in zip(FIGURES, zip(*rounds, strict=True), strict=True)
        }
        ratio = ratio_of([ms for ms, *_ in found["kept"]], [ms for ms, *_ in found["default"]])
        record.add({"network": name, "batch": batch_size, **medians, **ratio})


def report(rows: list[dict[str, Any]]) -> str:
    """A table of both ways."""
    heads = ["network", "batch", *(f"{figure}, {way}" for figure in FIGURES for way in ("kept", "default")), "ratio"]
    cells = [
        [
            *(row["network"], row["batch"]),
            *(row[f"{way}_{figure}"] for figure in FIGURES for way in ("kept", "default")),
            ratio_cell(row),
        ]
        for row in rows
    ]
    return table([head.replace("_", " ").replace("mib", "MiB") for head in heads], cells)


def figures_of_a_step(
    is_kept: bool, config: dict[str, Any], batch_size: int, steps: int, threads: int
) -> tuple[float, float, float]:
    """Milliseconds and page faults of a step, in the median, and MiB of the process at its peak."""
    torch.set_num_threads(threads)
    if is_kept:
        keep_freed_memory()
    unet = UNet2DModel(**config)
    optimizer = torch.optim.Adam(unet.parameters())
    x, t = inputs(config, batch_size)

    def step() -> None:
        set_gradients(unet, x, t)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    times, faults = [], []
    for _ in range(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        times.append(milliseconds(step))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(times), float(statistics.median(faults)), peak_memory() / MIB
