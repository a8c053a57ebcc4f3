"""Our UNet's forward pass, training step and memory against diffusers' UNet2DModel of the same weights.

A training step is forward, with dropout, and backward; the optimizer would be the same for both. Every variant of ours
is compared with diffusers' as it comes, in contiguous memory and not compiled, each time in a new process. Memory is
the most that tensors hold at any time of a step: weights, gradients, and what is kept for the backward pass or only for
a moment.

The last table is the roofline: the operations of convolutions and matrix products as torch counts them, and their rate
over what this machine did right after with one large convolution alone, and with one large matrix product alone.

What ours saves: an up-sampling convolution is computed as a transposed one of 4/9 of the multiplications, and a norm
with its SiLU keeps only its input and computes the rest again ([fused.py](../ddpm_hf/models/fused.py)); attention
over few pixels is plain products.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import INTERLEAVED, in_new_process, interleave, interleaved_cells
from benchmarks.record import Bar, Record, table
from ddpm_hf import UNet2DModel
from ddpm_hf.command_line import parse_config
from ddpm_hf.models.unet_2d_config import OURS_ONLY


def network_of(recipe: str) -> dict[str, Any]:
    """The settings of a recipe's network, as both UNets take them."""
    model = parse_config([], Path(__file__).parents[1] / "configs" / "train" / f"{recipe}.yaml").model
    return {key: value for key, value in model.items() if key not in OURS_ONLY}


CIFAR10, DIGITS = network_of("cifar10"), network_of("digits")
CASES = [("CIFAR-10", CIFAR10, 8, 1), ("CIFAR-10", CIFAR10, 16, 1), ("digits", DIGITS, 128, 10)]
"""Name, settings, batch size, and calls of a round: enough for a second."""
VARIANTS: dict[str, Callable[[UNet2DModel], Any]] = {
    "eager": lambda unet: unet,
    "channels_last": lambda unet: unet.to(memory_format=torch.channels_last),
    "compiled": lambda unet: unet.compile(),
    "compiled, channels_last": lambda unet: unet.to(memory_format=torch.channels_last).compile(),
}
AT_MOST = {
    ("CIFAR-10", "forward", "eager"): 0.93,
    ("CIFAR-10", "training step", "eager"): 0.90,
    ("CIFAR-10", "training step", "compiled"): 0.90,
    ("digits", "training step", "eager"): 0.80,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    names = sorted({name for name, *_ in CASES})
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))


def run(arguments: argparse.Namespace, record: Record) -> None:
    """For each network a row of each variant's forward and training step and one of its memory, if not in the file."""
    record.resume()
    threads = torch.get_num_threads()
    for name, config, batch_size, repeats in (case for case in CASES if case[0] in arguments.networks):
        case = {"network": name, "batch": batch_size}
        for variant in arguments.variants:
            for what in CALLS:
                key = {**case, "what": what, "variant": variant}
                if record.find(**key) is None:
                    how = (what, variant, arguments.rounds, repeats, threads)
                    record.add({**key, **in_new_process(times_of, config, batch_size, *how)})
        key = {**case, "what": "peak memory"}
        if record.find(**key) is None:
            record.add({**key, **in_new_process(memory_of, config, batch_size)})


def times_of(
    config: dict[str, Any], batch_size: int, what: str, variant: str, rounds: int, repeats: int, threads: int
) -> dict[str, float]:
    """Ours and diffusers', interleaved, and the roofline of ours where it is eager."""
    torch.set_num_threads(threads)
    ours, theirs, x, t = networks(config, batch_size)
    VARIANTS[variant](ours)
    one, two = (partial(CALLS[what], unet, x, t) for unet in (ours, theirs))
    return {**interleave(one, two, rounds, repeats), **(roofline_of(one) if variant == "eager" else {})}


def memory_of(config: dict[str, Any], batch_size: int) -> dict[str, float]:
    """MiB of a training step of ours, of diffusers', and of ours with gradient checkpointing."""
    ours, theirs, x, t = networks(config, batch_size)
    memory = {"ours_mib": peak_mib(ours, x, t), "theirs_mib": peak_mib(theirs, x, t)}
    ours.enable_gradient_checkpointing()
    return {**memory, "checkpointed_mib": peak_mib(ours, x, t)}


def networks(config: dict[str, Any], batch_size: int) -> tuple[UNet2DModel, Any, torch.Tensor, torch.Tensor]:
    """Ours and diffusers' with the same weights, noise and timesteps."""
    ours, theirs = UNet2DModel(**config), diffusers.UNet2DModel(**config)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, *inputs(config, batch_size)


def inputs(config: dict[str, Any], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, C, H, W) and timesteps (B,)."""
    size = config["sample_size"]
    return torch.randn(batch_size, config["in_channels"], size, size), torch.randint(1000, (batch_size,))


def report(rows: list[dict[str, Any]]) -> str:
    """One table of times, one of memory, one of the roofline."""
    case = ("network", "batch")
    times, memory, roofline = [], [], []
    for row in rows:
        where = [row[key] for key in (*case, "what")]
        if "ratio" in row:
            times.append([*where, row["variant"], *interleaved_cells(row)])
        if "gflop" in row:
            rate = 1000 * row["gflop"] / row["ours_ms"]
            shares = (f"{rate / row[f'{peak}_gflops']:.0%}" for peak in ("convolution", "product"))
            roofline.append([*where, row["gflop"], rate, *shares])
        if "ours_mib" in row:
            memory.append([*where[:2], row["ours_mib"], row["theirs_mib"], *_ratios(row)])
    return "\n\n".join(
        [
            table([*case, "what", "variant", *INTERLEAVED], times),
            table([*case, "ours, MiB", "diffusers, MiB", "ratio", "ratio with gradient checkpointing"], memory),
            table([*case, "what", "GFLOP", "GFLOP/s", "of a convolution's", "of a product's"], roofline),
        ]
    )


def _ratios(row: dict[str, Any]) -> tuple[float, float]:
    """Ratios of the memory, ours to theirs, without and with gradient checkpointing."""
    return row["ours_mib"] / row["theirs_mib"], row["checkpointed_mib"] / row["theirs_mib"]


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Times and memory over diffusers'."""
    found = []
    for row in rows:
        case = f"{row['network']} network, batch {row['batch']}"
        limit = AT_MOST.get((row["network"], row["what"], row.get("variant", "")))
        if limit is not None:
            what = f"{case}: {row['what']}, {row['variant']}, time over diffusers'"
            found.append(Bar(what, row["ratio"], at_most=limit))
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
    set_gradients(unet, x, t)
    unet.zero_grad()


def set_gradients(unet: Any, x: torch.Tensor, t: torch.Tensor) -> None:
    """Forward in training mode, and backward."""
    unet.train()(x, t).sample.square().mean().backward()


CALLS = {"forward": forward, "training step": training_step}


def peak_mib(unet: Any, x: torch.Tensor, t: torch.Tensor) -> float:
    """The most that tensors hold at any time of a training step: weights, gradients, and all kept or temporary."""
    training_step(unet, x, t)  # a first time, for what is allocated once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training_step(unet, x, t)
    events = profiler.profiler.kineto_results.events()
    held = accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return float(max(held) + sum(weight.nbytes for weight in unet.parameters())) / 2**20


def roofline_of(call: Callable[[], Any]) -> dict[str, float]:
    """The operations of a call, and the rates that this machine reaches at about the same time."""
    peaks = {"convolution_gflops": peak_gflops(a_convolution), "product_gflops": peak_gflops(a_product)}
    return {"gflop": gflop_of(call), **peaks}


def gflop_of(call: Callable[[], Any]) -> float:
    """Billions of additions and multiplications of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def peak_gflops(operation: Callable[[], Callable[[], Any]], repeats: int = 20) -> float:
    """Rate of an operation alone, the best of some repeats."""
    call = operation()
    gflop, seconds = gflop_of(call), []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return gflop / min(seconds)


def a_convolution() -> Callable[[], Any]:
    """3x3, of 16 images of 16x16 with 256 channels: the CIFAR-10 network's own, where it spends most."""
    x, weight = torch.randn(16, 256, 16, 16), torch.randn(256, 256, 3, 3)
    return partial(F.conv2d, x, weight, padding=1)


def a_product() -> Callable[[], Any]:
    """A product of square matrices."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return partial(torch.mm, a, b)
