"""The nouns of training: processes and threads, the batch of a step, the learning rate, the log of a run. No loop."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_hf.config import TrainingConfig
from ddpm_hf.data import ImageData, batch_indices, random_stream
from ddpm_hf.images import from_uint8
from ddpm_hf.losses import training_loss
from ddpm_hf.schedulers import DDPMScheduler
from ddpm_hf.unet import UNet2DModel

# Samples whose randomness is drawn by one generator. Any share of a batch costs at most the two blocks at its ends more
# than itself, and making a generator costs little beside drawing this many images.
BLOCK = 16


def start_processes(threads: int | None, gradient_accumulation_steps: int) -> Accelerator:
    """The accelerator of this process, on the CPU where there is nothing else, with its number of threads set.

    Args:
        threads: CPU threads of this process; None for the usable cores over the processes of this machine. (The
            launcher sets OMP_NUM_THREADS=1 by itself, which would leave all other cores idle.)
        gradient_accumulation_steps: Backward passes per optimizer step.

    Raises:
        ValueError: the launcher was asked for more processes than work together.
    """
    # Only with cpu=True do processes that a GPU launcher started find each other on a machine without one.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), gradient_accumulation_steps=gradient_accumulation_steps
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise ValueError(
            f"the launcher started {asked} processes, but this one sees {accelerator.num_processes}, so they would "
            "overwrite each other's files; start them with 'accelerate launch --multi_gpu --num_processes N'"
        )
    # The one trace that 'accelerate launch --cpu --num_processes N' leaves of N, which it then ignores.
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if launched_on_cpu and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "'accelerate launch --cpu' starts one process whatever number it is given; for N processes on the CPU use "
            "'accelerate launch --multi_gpu --num_processes N', also without a GPU; for one give --num_processes 1"
        )
    torch.set_num_threads(threads or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return accelerator


def check_fit(data: ImageData, unet: UNet2DModel, scheduler: DDPMScheduler, training: TrainingConfig) -> None:
    """See that images, network and objective go together, before anything is trained or written.

    Raises:
        ValueError: with the setting to change.
    """
    channels, height, width = data.images.shape[1:]
    config = unet.config
    if (config.in_channels, config.out_channels) != (channels, channels):
        raise ValueError(
            f"the images of {data.name!r} have {channels} channels and the network {config.in_channels} in and "
            f"{config.out_channels} out; give --model.in_channels {channels} --model.out_channels {channels}"
        )
    size = config.sample_size
    if (size if isinstance(size, tuple | list) else (size, size)) not in ((height, width), [height, width]):
        wanted = str(height) if height == width else f"[{height},{width}]"
        raise ValueError(
            f"the images of {data.name!r} are {height} x {width} and model.sample_size is {size}; "
            f"give --model.sample_size {wanted}"
        )
    if config.num_class_embeds is not None:
        if data.labels is None:
            raise ValueError(f"model.num_class_embeds is set, but {data.name!r} has no labels; set it to null")
        if int(data.labels.max()) >= config.num_class_embeds:
            raise ValueError(
                f"{data.name!r} has labels up to {int(data.labels.max())} and model.num_class_embeds is "
                f"{config.num_class_embeds}; make it {int(data.labels.max()) + 1} or more"
            )
    if scheduler.config.variance_type.startswith("learned"):
        raise ValueError(
            f"diffusion.variance_type is {scheduler.config.variance_type!r}, which this training does not learn; "
            "use fixed_small or fixed_large"
        )
    # The objective and the network each know best what they cannot do, so both are asked; on meta that costs nothing.
    image = torch.zeros(1, channels, height, width)
    prediction_type, weighting = scheduler.config.prediction_type, training.loss_weighting
    training_loss(scheduler.diffusion, image, image, image, torch.tensor([0]), prediction_type, weighting)
    with torch.device("meta"):
        label = None if config.num_class_embeds is None else torch.zeros(1, dtype=torch.int64)
        UNet2DModel.from_config(config)(torch.zeros(1, channels, height, width), torch.zeros(1), label)


def usable_cores() -> int:
    """The cores that this process may use, which in a container or a batch job can be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or microseconds of CPU time in a period of as many
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run depends on besides its settings: machine, versions, processes, threads, commit."""
    packages = ("torch", "diffusers", "accelerate", "datasets", "numpy")
    checkout = Path(__file__).parents[1]
    commit = None
    if (checkout / ".git").exists():
        git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "distributed_type": accelerator.distributed_type.value,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "commit": commit,
        **{package: version(package) for package in packages},
    }


@dataclass(frozen=True)
class Batch:
    """One micro-batch of ``b`` images on the device.

    Args:
        x_0: float32 ``(b, C, H, W)`` in [-1, 1].
        t: int64 ``(b,)``, uniform on 0..T-1.
        noise: float32, standard normal, of the shape of ``x_0``.
        labels: int64 ``(b,)`` or None.
    """

    x_0: Tensor
    t: Tensor
    noise: Tensor
    labels: Tensor | None


class Batches:
    """The batch of every step, as a function of (step, seed): images, timesteps, noise and flips.

    The global batch of a step does not depend on the number of processes or micro-batches it is cut into; each process
    draws its own share alone.

    Args:
        data: The images.
        batch_size: Of the global batch.
        num_train_timesteps: T; timesteps are uniform on 0..T-1.
        seed: All that is random here follows from it and the step.
        random_flip: Mirror each image left to right with probability 1/2.
        accelerator: Says which of how many processes this is, of how many micro-batches a step has, and the device.

    Raises:
        ValueError: the global batch cannot be cut evenly.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        num_train_timesteps: int,
        seed: int,
        random_flip: bool,
        accelerator: Accelerator,
    ) -> None:
        processes, self.num_micro_batches = accelerator.num_processes, accelerator.gradient_accumulation_steps
        pieces = processes * self.num_micro_batches
        if batch_size % pieces:
            below, above = batch_size // pieces * pieces, -(-batch_size // pieces) * pieces
            raise ValueError(
                f"training.batch_size is {batch_size}, which cannot be cut evenly into {processes} processes x "
                f"{self.num_micro_batches} accumulation steps; use {f'{below} or ' if below else ''}{above}"
            )
        self.data = data
        self.batch_size = batch_size
        self.num_train_timesteps = num_train_timesteps
        self.seed = seed
        self.random_flip = random_flip
        self._micro_batch_size = batch_size // pieces
        self._process = accelerator.process_index
        self._device = accelerator.device

    def micro_batch(self, step: int, index: int) -> Batch:
        """This process's part of micro-batch ``index`` of ``step``."""
        start = (self._process * self.num_micro_batches + index) * self._micro_batch_size
        stop = start + self._micro_batch_size
        picked = batch_indices(step, self.batch_size, len(self.data), self.seed)[start:stop]
        shape = tuple(self.data.images.shape[1:])
        t, flip, noise = draw_randomness(self.seed, step, start, stop, shape, self.num_train_timesteps)

        x_0 = from_uint8(self.data.images[picked].to(self._device))
        if self.random_flip:
            x_0 = torch.where(flip.to(self._device)[:, None, None, None], x_0.flip(-1), x_0)
        labels = None if self.data.labels is None else self.data.labels[picked].to(self._device)
        return Batch(x_0, t.to(self._device), noise.to(self._device), labels)


def draw_randomness(
    seed: int, step: int, start: int, stop: int, shape: tuple[int, ...], num_train_timesteps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps, flips and noise of samples ``start`` to ``stop - 1`` of the global batch of ``step``.

    Returns:
        int64 ``(n,)`` uniform on 0..T-1, bool ``(n,)``, and standard normal float32 ``(n, *shape)``, n = stop - start.
        Those of one sample depend on (seed, step, sample) and not on which others are drawn with it.
    """
    t, flip, noise = [], [], []
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        stream = random_stream("training step", seed, step, block)
        t.append(stream.integers(num_train_timesteps, size=BLOCK))
        flip.append(stream.random(BLOCK) < 0.5)
        noise.append(stream.standard_normal((BLOCK, *shape), dtype=np.float32))
    mine = slice(start % BLOCK, start % BLOCK + stop - start)
    joined = [torch.from_numpy(np.concatenate(parts)[mine]) for parts in (t, flip, noise)]
    return joined[0], joined[1], joined[2]


def seed_from(purpose: str, seed: int, *key: int) -> int:
    """A seed for :func:`torch.manual_seed` of its own for each purpose, seed and key."""
    return int(random_stream(purpose, seed, *key).integers(2**63))


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    return kind(parameters, fused=True, **options)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of ``step`` = 0, 1, ...: a linear warm-up, then the schedule, near 0 at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    factor = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}
    return config.learning_rate * factor[config.lr_schedule]


class MetricsLog:
    """``metrics.jsonl``: one line for every few steps, written by the main process.

    Losses and norms stay on the device until a line is due, so that logging does not make a GPU wait at every step.

    Args:
        path: The file; an earlier one is replaced.
        accelerator: Its processes' losses are averaged.
        images_per_step: The global batch size.
    """

    def __init__(self, path: Path, accelerator: Accelerator, images_per_step: int) -> None:
        self._path = path
        self._accelerator = accelerator
        self._images_per_step = images_per_step
        self._losses: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._since = time.perf_counter()
        if accelerator.is_main_process:
            path.write_text("")

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Remember a step: this process's mean loss, and the norm of the gradient before it was clipped."""
        self._losses.append(loss.detach())
        self._grad_norms.append(grad_norm.detach())

    def write(self, step: int, learning_rate: float) -> dict[str, float]:
        """Write and return the means over the steps since the last line.

        Args:
            step: Steps done so far; the first step of a run is number 1.
            learning_rate: That of the last of them.

        Raises:
            FloatingPointError: the loss of one of these steps was not finite.
        """
        losses = self._accelerator.reduce(torch.stack(self._losses).float(), reduction="mean").tolist()
        for past, loss in enumerate(losses, start=step + 1 - len(losses)):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss was {loss} at step {past}; try a lower training.learning_rate (it is {learning_rate:g} "
                    "there) or a longer training.warmup_steps"
                )
        now = time.perf_counter()
        record = {
            "step": step,
            "loss": sum(losses) / len(losses),
            "grad_norm": float(torch.stack(self._grad_norms).float().mean()),
            "learning_rate": learning_rate,
            "images_per_second": len(losses) * self._images_per_step / (now - self._since),
        }
        self._losses, self._grad_norms, self._since = [], [], now
        if self._accelerator.is_main_process:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return record
