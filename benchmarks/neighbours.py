"""Metrics: what precision, recall, density and coverage of large sets cost in time and memory.

As many samples as real images. The time of N x N distances of D features is that of a product and of what is done to
its result, N² (a D + b) seconds; this model is fitted to the first three rows and foretells the others. Memory counts
both sets of features.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import Record, table
from ddpm_hf.metrics import manifolds

FITTED = [(2_500, 512), (5_000, 512), (5_000, 2_048)]
FORETOLD = (10_000, 512)
WANTED = (50_000, 2_048)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each size: as measured, and as the model says of those that it was not fitted to."""
    del arguments  # a pass over 10,000 x 10,000 pairs is long enough without rounds
    found = {size: measured(*size) for size in (*FITTED, FORETOLD)}
    work = torch.tensor([[n * n * d, n * n] for n, d in FITTED], dtype=torch.float64)
    costs = torch.linalg.lstsq(work, torch.tensor([found[size][0] for size in FITTED], dtype=torch.float64)).solution
    for n, d in (*FITTED, FORETOLD, WANTED):
        seconds, mib = found.get((n, d), (None, None))
        model = (torch.tensor([n * n * d, n * n], dtype=torch.float64) @ costs).item() if (n, d) not in FITTED else None
        record.add({"images": n, "features": d, "seconds": seconds, "peak_mib": mib, "model_seconds": model})


def report(rows: list[dict[str, Any]]) -> str:
    """One table."""
    heads = ["images", "features", "seconds", "peak MiB", "seconds by the model"]
    return table(heads, [list(row.values()) for row in rows])


def measured(images: int, features: int) -> tuple[float, float]:
    """Seconds, and MiB above what the process had before, the sets themselves included; in a process of its own."""
    command = [sys.executable, "-m", __name__, str(images), str(features), str(torch.get_num_threads())]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    seconds, mib = json.loads(found.stdout)
    return seconds, mib


def measure(images: int, features: int) -> tuple[float, float]:
    """As `measured`, in this process."""
    manifolds(torch.randn(100, 8), torch.randn(100, 8), 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    real, fake = torch.randn(images, features), torch.randn(images, features)
    start = time.perf_counter()
    manifolds(real, fake, 3)
    return time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    number_of_images, number_of_features, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    print(json.dumps(measure(number_of_images, number_of_features)))
