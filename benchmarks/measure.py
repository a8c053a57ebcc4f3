"""Measuring that can be trusted on a machine with other work: rounds in turn, medians, ratios within a round."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

Figure = TypeVar("Figure")
MIB = 2**20


def in_turn(calls: Mapping[str, Callable[[], Figure]], rounds: int, is_warm: bool = False) -> dict[str, list[Figure]]:
    """What each call returns in each round; every other round goes backwards.

    Args:
        calls: Name -> what to call.
        rounds: How often.
        is_warm: The first call is like all others, so no round goes before those that count.
    """
    found: dict[str, list[Figure]] = {name: [] for name in calls}
    for i in range(0 if is_warm else -1, rounds):
        for name in reversed(list(calls)) if i % 2 else calls:
            value = calls[name]()
            if i >= 0:
                found[name].append(value)
    return found


def ratio_of(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' own ratios, and its quartiles."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"ratio": middle, "ratio_low": low, "ratio_high": high}


def interleave(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Median milliseconds of two calls, and :func:`ratio_of` them; in each round the mean of some calls on end."""
    calls = {"ours_ms": ours, "theirs_ms": theirs}
    ms = in_turn({name: partial(milliseconds, call, repeats) for name, call in calls.items()}, rounds)
    medians = {name: statistics.median(times) for name, times in ms.items()}
    return {**medians, **ratio_of(ms["ours_ms"], ms["theirs_ms"])}


def milliseconds(call: Callable[[], Any], repeats: int = 1) -> float:
    """Mean time of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1000 * (time.perf_counter() - start) / repeats


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function at the top level of a module returns in a process that has nothing loaded yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def resident_memory() -> int:
    """Bytes that this process holds."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    return _status("VmHWM")


def _status(entry: str) -> int:
    found = re.search(rf"^{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, entry
    return 1024 * int(found[1])


INTERLEAVED = ("ours, ms", "diffusers, ms", "ratio")
"""Heads of :func:`interleaved_cells`."""


def interleaved_cells(times: Mapping[str, float]) -> tuple[float, float, str]:
    """What :func:`interleave` found, for a table."""
    return times["ours_ms"], times["theirs_ms"], ratio_cell(times)


def ratio_cell(row: Mapping[str, float]) -> str:
    """What :func:`ratio_of` found, for a table."""
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
