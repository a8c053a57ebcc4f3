"""The network's pass in each form in which it could draw images, all in turn in one process, over diffusers' network as
it comes with the same weights.

`ddpm-hf-sample` takes the last form where all images together pay for the compiler
([compiling.py](../ddpm_hf/sampling/compiling.py)). Every form gives the same output up to rounding: the largest
difference from diffusers' is in the table.
"""

import argparse
import copy
import statistics
import time
from functools import partial
from typing import Any

import torch

from benchmarks.measure import in_new_process, in_turn, milliseconds, ratio_cell, ratio_of
from benchmarks.record import Bar, Record, table
from benchmarks.unet import CIFAR10, DIGITS, forward, networks
from ddpm_hf import UNet2DModel
from ddpm_hf.sampling.compiling import compile_for_drawing

CASES = [("digits", DIGITS, 64, 10), ("digits", DIGITS, 256, 4), ("CIFAR-10", CIFAR10, 16, 1)]
"""Name, settings, batch size, and calls of a round."""
THEIRS, BEST = "diffusers", "compiled, channels_last"


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each network, batch size and form."""
    record.resume()
    for name, config, batch_size, repeats in CASES:
        case = {"network": name, "batch": batch_size}
        if record.find(**case, form=BEST) is None:
            for row in in_new_process(forms_of, config, batch_size, arguments.rounds, repeats, torch.get_num_threads()):
                record.add({**case, **row})


def forms_of(config: dict[str, Any], batch_size: int, rounds: int, repeats: int, threads: int) -> list[dict[str, Any]]:
    """A row for each form of ours."""
    torch.set_num_threads(threads)
    ours, theirs, x, t = networks(config, batch_size)
    forms: dict[str, UNet2DModel] = {"eager": ours.eval()}
    forms |= {name: copy.deepcopy(ours) for name in ("channels_last", "compiled", BEST)}
    forms["channels_last"].to(memory_format=torch.channels_last)
    forms["compiled"].compile(dynamic=False)
    seconds: dict[str, float] = {}
    for name in ("compiled", BEST):
        start = time.perf_counter()
        if name == BEST:
            compile_for_drawing(forms[name], batch_size)
        else:
            forward(forms[name], x, t)
        seconds[name] = time.perf_counter() - start
    calls = {THEIRS: partial(forward, theirs, x, t)} | {n: partial(forward, unet, x, t) for n, unet in forms.items()}
    found = in_turn({name: partial(milliseconds, call, repeats) for name, call in calls.items()}, rounds)
    with torch.no_grad():
        expected = theirs(x, t).sample
        differences = {name: float((unet(x, t).sample - expected).abs().max()) for name, unet in forms.items()}
    return [
        {
            "form": name,
            "ms": statistics.median(found[name]),
            "theirs_ms": statistics.median(found[THEIRS]),
            "compile_seconds": seconds.get(name),
            "difference": differences[name],
            **ratio_of(found[name], found[THEIRS]),
        }
        for name in forms
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """One table."""
    heads = ("network", "batch", "form", "ms", "diffusers, ms", "ratio", "difference", "seconds to compile")
    keys = ("network", "batch", "form", "ms", "theirs_ms")
    cells = [
        [*(row[key] for key in keys), ratio_cell(row), f"{row['difference']:.0e}", row["compile_seconds"]]
        for row in rows
    ]
    return table(heads, cells)


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Images per second of the best form over diffusers'."""
    limits = {("digits", 256): 1.5, ("CIFAR-10", 16): 1.15}
    return [
        Bar(
            f"{row['network']}, batch {row['batch']}, {row['form']}: passes per second over diffusers'",
            1 / row["ratio"],
            at_least=limits[case],
        )
        for row in rows
        if row["form"] == BEST and (case := (row["network"], row["batch"])) in limits
    ]
