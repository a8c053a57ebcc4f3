"""The network: our UNet's forward pass, training step and memory against diffusers' UNet2DModel of the same weights.

A training step is forward, with dropout, and backward; the optimizer would be the same for both. Memory is the most
that a step holds at any time: weights, gradients, and what is kept for the backward pass or only for a moment.

What is saved: an up-sampling convolution is computed as a transposed one of 4/9 of the multiplications, and a norm with
its SiLU keeps only its input and computes the rest again ([fused.py](../ddpm_hf/fused.py)).
"""

import argparse
from functools import partial
from itertools import accumulate
from typing import Any

import diffusers
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import INTERLEAVED, interleave, interleaved_cells
from benchmarks.record import Bar, Record, table
from ddpm_hf import UNet2DModel

CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "attention_head_dim": None,
    "dropout": 0.1,
}
DIGITS: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
}
CASES = [("CIFAR-10", CIFAR10, 8), ("CIFAR-10", CIFAR10, 16), ("digits", DIGITS, 128)]


def run(arguments: argparse.Namespace, record: Record) -> None:
    """For each network a row of its forward pass, one of its training step and one of its memory."""
    for name, config, batch_size in CASES:
        ours = UNet2DModel(**config)
        theirs = diffusers.UNet2DModel(**config)
        theirs.load_state_dict(ours.state_dict())
        size, channels = config["sample_size"], ours.config.in_channels
        x = torch.randn(batch_size, channels, size, size)
        t = torch.randint(1000, (batch_size,))
        case = {"network": name, "batch": batch_size}
        for kind, call in (("forward", forward), ("training step", training_step)):
            times = interleave(partial(call, ours, x, t), partial(call, theirs, x, t), arguments.rounds)
            record.add({**case, "what": kind, **times})
        memory = {"ours_mib": peak_mib(ours, x, t), "theirs_mib": peak_mib(theirs, x, t)}
        ours.enable_gradient_checkpointing()
        record.add({**case, "what": "peak memory", **memory, "checkpointed_mib": peak_mib(ours, x, t)})


def report(rows: list[dict[str, Any]]) -> str:
    """One table of times, one of memory."""
    case = ("network", "batch")
    times = [[*(row[key] for key in (*case, "what")), *interleaved_cells(row)] for row in rows if "ratio" in row]
    memory = [
        [row["network"], row["batch"], row["ours_mib"], row["theirs_mib"], *_ratios(row)]
        for row in rows
        if "ours_mib" in row
    ]
    heads = [*case, "ours, MiB", "diffusers, MiB", "ratio", "ratio with gradient checkpointing"]
    return "\n\n".join([table([*case, "what", *INTERLEAVED], times), table(heads, memory)])


def _ratios(row: dict[str, Any]) -> tuple[float, float]:
    """Of the memory, without and with gradient checkpointing."""
    return row["ours_mib"] / row["theirs_mib"], row["checkpointed_mib"] / row["theirs_mib"]


AT_MOST = {("CIFAR-10", "forward"): 0.93, ("CIFAR-10", "training step"): 0.93, ("digits", "training step"): 0.75}


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Times and memory over diffusers'."""
    found = []
    for row in rows:
        case = f"{row['network']} network, batch {row['batch']}"
        limit = AT_MOST.get((row["network"], row["what"]))
        if limit is not None:
            found.append(Bar(f"{case}: {row['what']}, time over diffusers'", row["ratio"], at_most=limit))
        if "ours_mib" in row:
            plain, checkpointed = _ratios(row)
            found.append(Bar(f"{case}: memory of a step over diffusers'", plain, at_most=0.85))
            found.append(Bar(f"{case}: the same with gradient checkpointing", checkpointed, at_most=0.45))
    return found


@torch.no_grad()
def forward(unet: Any, x: torch.Tensor, t: torch.Tensor) -> None:
    """The network in evaluation mode."""
    unet.eval()(x, t)


def training_step(unet: Any, x: torch.Tensor, t: torch.Tensor) -> None:
    """Forward with dropout, and backward; the optimizer would be the same for both."""
    unet.train()(x, t).sample.square().mean().backward()
    unet.zero_grad()


def peak_mib(unet: Any, x: torch.Tensor, t: torch.Tensor) -> float:
    """The most that tensors hold at any time of a training step: weights, gradients, and all kept or temporary."""
    training_step(unet, x, t)  # a first time, for what is allocated once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training_step(unet, x, t)
    events = profiler.profiler.kineto_results.events()
    held = accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return float(max(held) + sum(weight.nbytes for weight in unet.parameters())) / 2**20
