"""What a run will need at least, in memory and on the disk, compared with what there is before anything is built."""

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ddpm_hf.launch import usable_memory
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.training.settings import Config, TrainingConfig

FLOAT = 4
"""Bytes of a number: weights, gradients, moments, averages, images and noise are float32 in any precision."""
TENSORS_OF_A_STEP = 4
"""Of the size of the images: x_0, noise, x_t and the network's output."""
MOMENTS = 2
"""Of the optimizer, for each weight."""


def check_needs(config: Config, accelerator: Accelerator) -> None:
    """Refuse a run whose network, optimizer and averages cannot fit, or whose checkpoints cannot.

    Bounds from below: what a step computes inside the network comes on top.

    Raises:
        ValueError: with what is needed, what there is and the setting to change.
    """
    parameters = parameters_of(config.model)
    averages, training = len(config.training.ema_decays), config.training
    by_length = len(training.ema_sigma_rels)
    shards = accelerator.num_processes if accelerator.distributed_type == DistributedType.FSDP else 1
    copies = 1 + 1 + MOMENTS + averages + by_length  # weights, gradients
    needed, there = parameters * FLOAT * copies // shards, memory_of(accelerator)
    if needed > there:
        raise ValueError(
            f"the network has {parameters:,} weights, which with gradients, optimizer and averages take "
            f"{in_units(needed)}, and each process has {in_units(there)} of memory; lower model.block_out_channels or "
            "model.layers_per_block"
        )
    snapshots = parameters * FLOAT * by_length * number_of_snapshots(training)
    checkpoint = parameters * FLOAT * (1 + MOMENTS + averages + by_length)
    _check_disk(config.output_dir, checkpoint, parameters * FLOAT * averages + snapshots, training)


def check_batch(shape: tuple[int, ...], training: TrainingConfig, accelerator: Accelerator) -> None:
    """Refuse a batch whose images alone do not fit.

    Args:
        shape: ``(C, H, W)`` of an image.
        training: Settings of the run.
        accelerator: Its processes.

    Raises:
        ValueError: with the largest batch that could.
    """
    image, there = math.prod(shape) * FLOAT * TENSORS_OF_A_STEP, memory_of(accelerator)
    pieces = accelerator.num_processes * training.gradient_accumulation_steps
    if image * math.ceil(training.batch_size / pieces) > there:
        raise ValueError(
            f"training.batch_size is {training.batch_size}, of which each of {pieces} pieces (processes x "
            f"gradient_accumulation_steps) takes {in_units(image * math.ceil(training.batch_size / pieces))} for its "
            f"images alone, and a process has {in_units(there)} of memory; it must be below {there // image * pieces}"
        )


def parameters_of(model: Mapping[str, Any]) -> int:
    """How many weights the network of these settings has. Nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet2DModel(**model).parameters())


def number_of_snapshots(training: TrainingConfig) -> int:
    """How many snapshots of averages of relative lengths a run keeps; the last step's is one of them."""
    every = training.snapshot_every
    return 0 if every is None else math.ceil(training.steps / every)


def memory_of(accelerator: Accelerator) -> int:
    """Bytes that a process may use at most: its GPU's, or its share of the machine's or container's, with swap."""
    if accelerator.device.type == "cuda":
        return int(torch.cuda.mem_get_info(accelerator.device)[1])
    return usable_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def in_units(size: int) -> str:
    """A number of bytes for people."""
    power = min(max(size.bit_length() - 1, 0) // 10, 6)
    return f"{size / 2 ** (10 * power):.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[power]}"


def _check_disk(folder: Path, checkpoint: int, beside: int, training: TrainingConfig) -> None:
    """See that there is room for the checkpoints and for what is beside them: the pipeline, and any snapshots."""
    saves = math.ceil(training.steps / (training.checkpoint_every or training.steps))
    # The oldest is removed when the newest is complete.
    most = min(saves, training.checkpoints_total_limit + 1)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    there = shutil.disk_usage(place).free + sum(path.stat().st_size for path in files)
    needed = checkpoint * most + beside
    if needed > there:
        fitting = (there - beside) // checkpoint - 1
        snapshots = number_of_snapshots(training)
        also = f"{snapshots} snapshots of averages, " if snapshots else ""
        remedy = f"training.checkpoints_total_limit {fitting} would fit" if fitting > 0 else "make room there"
        raise ValueError(
            f"{also}{most} checkpoints of {in_units(checkpoint)} and the pipeline need {in_units(needed)}, and {place} "
            f"has {in_units(there)} left for this run; {remedy}, or give another --output_dir"
        )
