"""Timing that can be trusted on a machine with other work: rounds in turn, medians, ratios within a round."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleave(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Call both in turn, the order changing from round to round, after one round that does not count.

    Returns:
        median milliseconds of each, and the median of the rounds' own ratios with its quartiles.
    """
    ours_ms: list[float] = []
    theirs_ms: list[float] = []
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


INTERLEAVED = ("ours, ms", "diffusers, ms", "ratio")
"""Heads of :func:`interleaved_cells`."""


def interleaved_cells(times: Mapping[str, float]) -> tuple[float, float, str]:
    """What :func:`interleave` found, for a table."""
    ratio = f"{times['ratio']:.2f} ({times['ratio_low']:.2f} to {times['ratio_high']:.2f})"
    return times["ours_ms"], times["theirs_ms"], ratio
