"""What scores of large sets cost, from their features on: FID, and precision, recall, density and coverage; time and
memory over the number of images, of which there are as many samples as real ones.

Each figure is of a process of its own; memory is what it takes above what it had before, both sets of features
included. The bare work is what no exact way goes without: of the neighbours, two products of N x N (one between the
sets, half of one within each); of the FID's Gaussians, the eigenvalues and eigenvectors of one covariance and the
eigenvalues of another. The time of neighbours is N D (a N + b), fitted to some sizes; others are foretold.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import MIB, in_new_process, peak_memory, resident_memory
from benchmarks.record import Bar, Record, table
from ddpm_hf.metrics import frechet_distance, manifolds
from ddpm_hf.metrics.frechet import frechet_distance_of_gaussians, mean_and_covariance
from ddpm_hf.metrics.neighbours import TILE

FID, GAUSSIANS, NEIGHBOURS = "FID", "FID of Gaussians", "neighbours"
FID_SIZES = [(images, features) for features in (512, 2_048) for images in (1_000, 5_000, 10_000)]
FITTED = [(5_000, 512), (10_000, 512), (5_000, 2_048)]
FORETOLD = (20_000, 2_048)
WANTED = (50_000, 2_048)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No rounds: a pass over 10,000 x 10,000 pairs is long enough."""
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each metric and size: as measured, and as the model says of those that it was not fitted to."""
    threads = torch.get_num_threads()
    for n, d in FID_SIZES:
        record.add({"metric": FID, "images": n, "features": d, **in_new_process(cost, FID, n, d, threads)})
    n, d = FORETOLD[0] // 4, FORETOLD[1]
    record.add({"metric": GAUSSIANS, "images": n, "features": d, **in_new_process(cost, GAUSSIANS, n, d, threads)})
    found = {size: in_new_process(cost, NEIGHBOURS, *size, threads) for size in (*FITTED, FORETOLD)}
    work = torch.tensor([[n * n * d, n * d] for n, d in FITTED], dtype=torch.float64)
    seconds = torch.tensor([found[size]["seconds"] for size in FITTED], dtype=torch.float64)
    costs = torch.linalg.lstsq(work, seconds).solution
    for n, d in (*FITTED, FORETOLD, WANTED):
        row = {"metric": NEIGHBOURS, "images": n, "features": d, **found.get((n, d), {})}
        if (n, d) not in FITTED:
            row["model_seconds"] = (torch.tensor([n * n * d, n * d], dtype=torch.float64) @ costs).item()
        record.add(row)


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each metric."""
    keys = ("images", "features", "seconds", "peak_mib")
    heads = ["images", "features", "seconds", "peak memory, MiB"]
    fid, gaussians, neighbours = (
        [row for row in rows if row["metric"] == metric] for metric in (FID, GAUSSIANS, NEIGHBOURS)
    )
    over_work = [[*(row.get(key) for key in keys), _over_work(row)] for row in gaussians]
    modelled = [[*(row.get(key) for key in keys), _over_work(row), row.get("model_seconds")] for row in neighbours]
    return "\n\n".join(
        [
            "FID:",
            table(heads, [[row[key] for key in keys] for row in fid]),
            "The FID's Gaussians alone, when their means and covariances are there:",
            table([*heads, "over the bare work"], over_work),
            "Precision, recall, density and coverage together:",
            table([*heads, "over the bare work", "seconds by the model"], modelled),
        ]
    )


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Times over the bare work's, at sizes of which that is the most."""
    limits = {(GAUSSIANS, FORETOLD[0] // 4): 1.2, (NEIGHBOURS, FORETOLD[0]): 2.0}
    return [
        Bar(
            f"{row['metric']}, {row['images']:,} images of {row['features']:,} features: time over the bare work",
            row["seconds"] / row["work_seconds"],
            at_most=limits[row["metric"], row["images"]],
        )
        for row in rows
        if "work_seconds" in row and row["features"] == FORETOLD[1] and (row["metric"], row["images"]) in limits
    ]


def _over_work(row: dict[str, Any]) -> float | None:
    return row["seconds"] / row["work_seconds"] if "work_seconds" in row else None


def cost(metric: str, images: int, features: int, threads: int) -> dict[str, float]:
    """Seconds and memory of a metric of random features, in this process; and seconds of its bare work."""
    torch.set_num_threads(threads)
    scores: dict[str, Callable[..., Any]] = {
        FID: frechet_distance,
        GAUSSIANS: frechet_distance_of_gaussians,
        NEIGHBOURS: lambda real, fake: manifolds(real, fake, 3),
    }
    score, warm = scores[metric], torch.randn(100, 8)
    score(*([*mean_and_covariance(warm)] * 2 if metric == GAUSSIANS else (warm, warm)))
    before = resident_memory()
    real, fake = torch.randn(images, features), torch.randn(images, features)
    given = [real, fake]
    if metric == GAUSSIANS:
        given = [*mean_and_covariance(real), *mean_and_covariance(fake)]
    start = time.perf_counter()
    score(*given)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "peak_mib": (peak_memory() - before) / MIB}
    start = time.perf_counter()
    if metric == GAUSSIANS:
        torch.linalg.eigh(given[1])
        torch.linalg.eigvalsh(given[3])
    elif metric == NEIGHBOURS:
        for rows in torch.split(real, TILE):
            for columns in torch.split(fake, TILE):
                for _ in range(2):
                    rows @ columns.T
    return found | ({} if metric == FID else {"work_seconds": time.perf_counter() - start})
