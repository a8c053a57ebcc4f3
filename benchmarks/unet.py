"""The UNet's forward, training step and memory against diffusers' UNet2DModel, with the same weights."""

from functools import partial
from itertools import accumulate
from typing import Any

import diffusers
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import interleave
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


def run(rounds: int) -> list[dict[str, Any]]:
    """One row for each network and each of forward and training step, then one for each network's memory."""
    rows, memory_rows = [], []
    for name, config, batch_size in CASES:
        ours = UNet2DModel(**config)
        theirs = diffusers.UNet2DModel(**config)
        theirs.load_state_dict(ours.state_dict())
        size, channels = config["sample_size"], ours.config.in_channels
        x = torch.randn(batch_size, channels, size, size)
        t = torch.randint(1000, (batch_size,))
        for kind, call in (("forward", forward), ("training step", training_step)):
            times = interleave(partial(call, ours, x, t), partial(call, theirs, x, t), rounds)
            rows.append({"network": name, "batch": batch_size, "what": kind, **times})
        memory = {"ours_mib": peak_mib(ours, x, t), "theirs_mib": peak_mib(theirs, x, t)}
        ours.enable_gradient_checkpointing()
        memory["checkpointed_mib"] = peak_mib(ours, x, t)
        ratios = {f"{key}_ratio": memory[f"{key}_mib"] / memory["theirs_mib"] for key in ("ours", "checkpointed")}
        memory_rows.append({"network": name, "batch": batch_size, "what": "peak memory", **memory, **ratios})
    return rows + memory_rows


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
    return (max(held) + sum(weight.nbytes for weight in unet.parameters())) / 2**20
