"""What scores of large sets cost, from their features on: FID, and precision, recall, density and coverage; time and
memory over the number of images, of which there are as many samples as real ones.

Each figure is of a process of its own; memory is what it takes above what it had before, both sets of features
included. The time of N x N distances of D features is that of a product and of what is done to its result,
N^2 (a D + b). It is fitted to some sizes; another one is foretold and measured.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import MIB, in_new_process, peak_memory, resident_memory
from benchmarks.record import Record, table
from ddpm_hf.metrics import frechet_distance, manifolds

FID, NEIGHBOURS = "FID", "neighbours"
FID_SIZES = [(images, features) for features in (512, 2_048) for images in (1_000, 5_000, 10_000)]
FITTED = [(2_500, 512), (5_000, 512), (5_000, 2_048)]
FORETOLD = (10_000, 512)
WANTED = (50_000, 2_048)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No rounds: a pass over 10,000 x 10,000 pairs is long enough."""
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each metric and size: as measured, and as the model says of those that it was not fitted to."""
    threads = torch.get_num_threads()
    for n, d in FID_SIZES:
        record.add({"metric": FID, "images": n, "features": d, **in_new_process(cost, FID, n, d, threads)})
    found = {size: in_new_process(cost, NEIGHBOURS, *size, threads) for size in (*FITTED, FORETOLD)}
    work = torch.tensor([[n * n * d, n * n] for n, d in FITTED], dtype=torch.float64)
    seconds = torch.tensor([found[size]["seconds"] for size in FITTED], dtype=torch.float64)
    costs = torch.linalg.lstsq(work, seconds).solution
    for n, d in (*FITTED, FORETOLD, WANTED):
        row = {"metric": NEIGHBOURS, "images": n, "features": d, **found.get((n, d), {})}
        if (n, d) not in FITTED:
            row["model_seconds"] = (torch.tensor([n * n * d, n * n], dtype=torch.float64) @ costs).item()
        record.add(row)


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each metric."""
    keys = ("images", "features", "seconds", "peak_mib")
    heads = ["images", "features", "seconds", "peak memory, MiB"]
    fid, neighbours = ([row for row in rows if row["metric"] == metric] for metric in (FID, NEIGHBOURS))
    modelled = [[row.get(key) for key in (*keys, "model_seconds")] for row in neighbours]
    return "\n\n".join(
        [
            "FID:",
            table(heads, [[row[key] for key in keys] for row in fid]),
            "Precision, recall, density and coverage together:",
            table([*heads, "seconds by the model"], modelled),
        ]
    )


def cost(metric: str, images: int, features: int, threads: int) -> dict[str, float]:
    """Seconds and memory of a metric of random features, in this process."""
    torch.set_num_threads(threads)
    score: Callable[..., Any] = {FID: frechet_distance, NEIGHBOURS: lambda real, fake: manifolds(real, fake, 3)}[metric]
    score(torch.randn(100, 8), torch.randn(100, 8))
    before = resident_memory()
    real, fake = torch.randn(images, features), torch.randn(images, features)
    start = time.perf_counter()
    score(real, fake)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": (peak_memory() - before) / MIB}
