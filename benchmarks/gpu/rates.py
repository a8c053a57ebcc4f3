"""Images per second of this package's pipeline and of diffusers' DDIMPipeline, and the time of the metrics.

Times are of a pipeline's call for one batch, numpy images included, called in turn; weights in float32 (with TF32) or
in float16, as diffusers' pipeline makes no numpy images of bfloat16. The metrics are of two sets of random features of
the size at which papers give them.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch

from benchmarks.gpu.device import precision, synchronize, timed
from benchmarks.gpu.network import networks
from benchmarks.gpu.sizes import Sizes
from benchmarks.measure import in_turn, ratio_cell, ratio_of
from benchmarks.record import Record, table
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline
from ddpm_hf.metrics import frechet_distance, precision_recall


def run(sizes: Sizes, device: torch.device, record: Record, attempt: Callable[..., None]) -> None:
    """A row for each precision and batch, and one for each metric."""
    for kind in ("tf32", "fp16"):
        for size, steps in sizes.sampling:
            key = {"part": "sampling", "weights": kind, "batch": size, "steps": steps}
            attempt(key, partial(sampled, list(sizes.networks.values())[-1], sizes, device, kind, size, steps))
    for metric in (frechet_distance, precision_recall):
        key = {"part": "metrics", "metric": metric.__name__, "images": sizes.features[0], "features": sizes.features[1]}
        attempt(key, partial(metric_time, metric, sizes, device))


def sampled(
    config: dict[str, Any], sizes: Sizes, device: torch.device, kind: str, size: int, steps: int
) -> dict[str, Any]:
    """Milliseconds of one call, and images per second."""
    unets = networks(config, device, "eager", "")
    dtype = torch.float16 if kind == "fp16" else torch.float32
    ours = DDPMCustomPipeline(unets["ours"].eval().to(dtype), DDIMScheduler())
    theirs = diffusers.DDIMPipeline(unets["theirs"].eval().to(dtype), diffusers.DDIMScheduler())
    calls = {}
    with precision(kind):
        for name, pipeline in (("ours_ms", ours), ("theirs_ms", theirs)):
            pipeline.set_progress_bar_config(disable=True)
            calls[name] = partial(timed, partial(draw, pipeline, size, steps))
        ms = in_turn(calls, min(3, sizes.rounds))
    medians = {name: statistics.median(times) for name, times in ms.items()}
    rates = {name.replace("ms", "images_s"): 1000 * size / value for name, value in medians.items()}
    return {**medians, **rates, **ratio_of(ms["ours_ms"], ms["theirs_ms"])}


def draw(pipeline: Any, size: int, steps: int) -> None:
    """A batch of images as numpy arrays, from the noise of one generator."""
    generator = torch.Generator().manual_seed(0)
    pipeline(batch_size=size, generator=generator, num_inference_steps=steps, output_type="np")


def metric_time(metric: Callable[..., Any], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Seconds of a first call, with its warm-up, and what it found."""
    torch.manual_seed(0)
    a, b = (torch.randn(*sizes.features, device=device) for _ in range(2))
    with precision("float32"):
        synchronize()
        start = time.perf_counter()
        value = metric(a, b)
        synchronize()
        return {"seconds": time.perf_counter() - start, "value": value}


def report(rows: list[dict[str, Any]]) -> str:
    """Images per second; seconds of the metrics."""
    keys = ("weights", "batch", "steps")
    sampling = [
        [*(row[key] for key in keys), row["ours_images_s"], row["theirs_images_s"], ratio_cell(row)]
        for row in rows
        if row["part"] == "sampling" and "ratio" in row
    ]
    names = ("metric", "images", "features", "seconds", "value")
    metrics = [[row[name] for name in names] for row in rows if row["part"] == "metrics" and "seconds" in row]
    heads = [*keys, "ours, images/s", "diffusers, images/s", "ratio of times"]
    return "\n\n".join([table(heads, sampling), table(names, metrics)])
