"""What training on your own images costs by their size: the networks that
[photos.yaml](../configs/train/photos.yaml) chooses, from the table in
[network_sizes.py](../ddpm_hf/models/network_sizes.py), on RGB images.

A training step is noise, forward, loss, backward and Adam, of a batch of two, in float32. Its peak is the most that
tensors hold at a time, Adam's two moments and an average of the weights included; each further image adds what it keeps
for the backward pass. GFLOP are those of the forward pass of one image; a step takes three times as many. An image is
drawn in 50 steps of DDIM, each as long as one forward pass. The passes of all sizes are made in turn, and medians
count; time is that of the processor, because others used the machine too.

For another machine, divide its TFLOP/s in practice (about 40% of what its maker states for the precision used) by three
times the GFLOP: images per second. `--dry_run` measures instead.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import MIB, in_turn
from benchmarks.record import Record, table
from benchmarks.unet import forward, gflop_of, inputs, peak_mib
from ddpm_hf import DDPMScheduler, UNet2DModel
from ddpm_hf.command_line import parse_config
from ddpm_hf.diffusion.losses import training_loss
from ddpm_hf.models.network_sizes import SIZES
from ddpm_hf.training.optimization import make_optimizer, objective_of
from ddpm_hf.training.settings import Config

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "photos.yaml"
BATCH_SIZE, STEPS = 2, 50
HELD_BESIDE = 3 * 4
"""Bytes of Adam's two moments and an average of each weight."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which sizes."""
    sides = [row.side for row in SIZES]
    parser.add_argument("--sides", nargs="+", type=int, choices=sides, default=sides)
    parser.set_defaults(rounds=3, threads=1)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row of each size."""
    rows, calls = [], dict[str, Callable[[], float]]()
    for side in arguments.sides:
        config = parse_config([], RECIPE).following((3, side, side))
        torch.manual_seed(0)
        unet = UNet2DModel(**config.model)
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        one, two = (kept_mib(unet, *inputs(config.model, batch)) for batch in (1, 2))
        peak = peak_mib(unet, *inputs(config.model, BATCH_SIZE)) + parameters * HELD_BESIDE / MIB
        memory = {"peak_mib": peak, "image_mib": two - one}
        gflop = gflop_of(partial(forward, unet, *inputs(config.model, 1)))
        channels = config.model["block_out_channels"]
        rows.append({"side": side, "channels": channels, "parameters": parameters, "gflop": gflop, **memory})
        x, t = inputs(config.model, BATCH_SIZE)
        calls[f"train {side}"] = partial(processor_seconds, training_step_of(config, unet, x, t))
        calls[f"draw {side}"] = partial(processor_seconds, partial(forward, unet, x, t))
    seconds = {name: statistics.median(times) for name, times in in_turn(calls, arguments.rounds).items()}
    for row in rows:
        trained, drawn = (BATCH_SIZE / seconds[f"{what} {row['side']}"] for what in ("train", "draw"))
        record.add({**row, "batch": BATCH_SIZE, "trained_per_second": trained, "drawn_per_second": drawn / STEPS})


def training_step_of(config: Config, unet: UNet2DModel, x_0: torch.Tensor, t: torch.Tensor) -> Callable[[], None]:
    """A call that takes one step, as the loop of train_accelerate.py does."""
    scheduler = DDPMScheduler(**config.diffusion)
    optimizer, objective = make_optimizer(unet.parameters(), config.training), objective_of(config.training)

    def step() -> None:
        unet.train()
        noise = torch.randn_like(x_0)
        output = unet(scheduler.diffusion.q_sample(x_0, t, noise), t).sample
        training_loss(scheduler.denoiser, output, x_0, noise, t, objective).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def processor_seconds(call: Callable[[], Any]) -> float:
    """Time that all threads of this process work in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def kept_mib(unet: UNet2DModel, x: torch.Tensor, t: torch.Tensor) -> float:
    """What a forward pass keeps for the backward pass, besides the weights."""
    sizes = dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet.train()(x, t).sample.square().mean()  # which holds all of it, so that no place is used twice
    del output
    return sum(size for place, size in sizes.items() if place not in weights) / MIB


def report(rows: list[dict[str, Any]]) -> str:
    """A table, a row of each size."""
    return table([*HEADS], [[cell(row) for cell in HEADS.values()] for row in rows])


def short_report(rows: list[dict[str, Any]]) -> str:
    """The same for the README, with fewer columns."""
    heads = {head: cell for head, cell in HEADS.items() if head not in ("channels", "images/s drawn")}
    return table([*heads], [[cell(row) for cell in heads.values()] for row in rows])


HEADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "images up to": lambda row: f"{row['side']} x {row['side']}",
    "channels": lambda row: ", ".join(map(str, row["channels"])),
    "parameters": lambda row: row["parameters"],
    "GFLOP": lambda row: row["gflop"],
    "images/s trained": lambda row: row["trained_per_second"],
    "images/s drawn": lambda row: row["drawn_per_second"],
    "peak, MiB": lambda row: row["peak_mib"],
    "each further image, MiB": lambda row: row["image_mib"],
}
"""Head of a column -> its cell of a row."""
