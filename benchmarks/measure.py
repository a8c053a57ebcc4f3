"""Timing that can be trusted on a machine with other work: rounds in turn, medians, ratios within a round."""

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import ddpm_hf


def interleave(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Call both in turn, the order changing from round to round, after one round that does not count.

    Returns:
        median milliseconds of each, and the median of the rounds' own ratios with its quartiles.
    """
    ours_ms, theirs_ms = [], []
    for i in range(rounds + 1):
        pair = [(ours, ours_ms), (theirs, theirs_ms)]
        for call, times in pair if i % 2 else reversed(pair):
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(ours_ms[1:], theirs_ms[1:], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ours_ms": statistics.median(ours_ms[1:]),
        "theirs_ms": statistics.median(theirs_ms[1:]),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def machine(threads: int | None) -> dict[str, Any]:
    """What the figures depend on; sets the number of threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    cpu_info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "ddpm_hf": ddpm_hf.__version__,
        **{package: version(package) for package in ("torch", "diffusers")},
    }
