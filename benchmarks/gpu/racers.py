"""The two that race: the recipe of configs/train/cifar10.yaml, and a plain loop of diffusers' parts."""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from benchmarks.plain_loop import EXAMPLE, PlainLoop
from ddpm_hf import DDIMScheduler, DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import ImageData
from ddpm_hf.images import from_uint8
from ddpm_hf.models.unet_2d_config import OURS_ONLY
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.training.log import read_log
from ddpm_hf.training.run import Run
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import build
from train_accelerate import train

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "cifar10.yaml"


class Racer(Protocol):
    """One that is trained for a while, draws of its averaged weights, and can be put away and taken up again.

    Attributes:
        seconds: of training so far.
        loss: mean of the last slice's losses.
    """

    seconds: float
    loss: float

    @property
    def step(self) -> int:
        """Steps taken."""

    def train_for(self, seconds: float, planned: float) -> None:
        """Take steps for so long, of a race of so many seconds for this one."""

    def draw(self, num_images: int, steps: int) -> Tensor:
        """uint8 images of the averaged weights, from seeds 0, 1, 2, ..., by DDIM."""

    def state_dict(self) -> dict[str, Any]:
        """All that training changes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up again."""


def recipe(model: dict[str, Any], batch_size: int) -> Config:
    """The recipe's settings, but for a warm-up of 500 steps: its own 5,000 are meant for 795,600 steps, not minutes."""
    config = parse_config([], RECIPE)
    training = replace(config.training, batch_size=batch_size, warmup_steps=EXAMPLE.warmup_steps, tf32=True)
    return replace(config, model=config.model | model, training=training)


def sampler(config: Config, steps: int, device: torch.device) -> DDIMScheduler:
    """The recipe's, for both."""
    scheduler = DDIMScheduler.from_config(
        DDPMScheduler(**config.diffusion).config, timestep_spacing=config.timestep_spacing
    )
    scheduler.set_timesteps(steps, device)
    found: DDIMScheduler = scheduler
    return found


class _Losses:
    """In the place of the file of metrics: the losses since it was asked."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []

    def add(self, losses: Tensor, *_: Any) -> None:
        self._means.append(losses.mean())

    def mean(self) -> float:
        found, self._means = float(torch.stack(self._means).mean()) if self._means else math.nan, []
        return found


class _TimedRun(Run):
    """A run that takes no further step after a moment."""

    until = 0.0

    def steps(self) -> Iterator[Any]:
        """Those until then."""
        for found in super().steps():
            yield found
            if time.perf_counter() >= self.until:
                return


class Recipe:
    """The loop of train_accelerate.py itself, with its batches, objective, optimizer and averages.

    Args:
        config: of :func:`recipe`.
        data: the images.
        accelerator: says the device and the precision.
    """

    def __init__(self, config: Config, data: ImageData, accelerator: Accelerator) -> None:
        self._folder = tempfile.TemporaryDirectory()
        training = replace(config.training, checkpoint_every=None, sample_every=None, log_every=10)
        evaluation = replace(config.evaluation, extractor=None, every=None)
        config = replace(
            config, output_dir=Path(self._folder.name), training=training, evaluation=evaluation, quiet=True
        )
        self._run = _TimedRun(build(config, accelerator, data))
        self.state = self._run.state
        self.seconds, self.loss = 0.0, math.nan

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.state.step

    def train_for(self, seconds: float, planned: float) -> None:
        """As `Racer` says."""
        start, first = time.perf_counter(), self.step
        self._run.until = start + seconds
        train(self._run)
        lines = [line["loss"] for line in read_log(self._run.folder / "metrics.jsonl") if line["step"] > first]
        self.loss = fmean(lines) if lines else math.nan
        self.seconds += time.perf_counter() - start

    def draw(self, num_images: int, steps: int) -> Tensor:
        """As `Racer` says."""
        unet = self.state.unet
        with self.state.ema.averaged_weights():
            grid = sampler(self._run.config, steps, unet.device)
            return sample_images(unet, grid, range(num_images), SamplingOptions(batch_size=512))

    def state_dict(self) -> dict[str, Any]:
        """As `Racer` says."""
        state = self.state
        return {
            "unet": state.unet.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "ema": state.ema.averages,
            "numbers": [state.step, state.ema.num_updates, self.seconds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Racer` says."""
        self.state.unet.load_state_dict(state["unet"])
        self.state.optimizer.load_state_dict(state["optimizer"])
        for decay, averages in self.state.ema.averages.items():
            for average, saved in zip(averages, state["ema"][decay], strict=True):
                average.copy_(saved)
        self.state.step, self.state.ema.num_updates, self.seconds = state["numbers"]


class Plain:
    """diffusers' parts as its unconditional example puts them together, with its learning rate and warm-up.

    Its images, random flips and timesteps are on the device already, which spares it the example's loader. The cosine
    ends with the race: its number of steps is what this one takes in the planned time at its pace so far.

    Args:
        config: of :func:`recipe`, for network, batch size and sampler.
        data: the images.
        accelerator: says the device and the precision.
    """

    def __init__(self, config: Config, data: ImageData, accelerator: Accelerator) -> None:
        torch.manual_seed(config.seed)
        model = {key: value for key, value in config.model.items() if key not in OURS_ONLY}
        unet = diffusers.UNet2DModel(**model).to(accelerator.device)
        images = from_uint8(data.images).to(accelerator.device)
        batch_size = config.training.batch_size
        self._loop = PlainLoop(unet, images, 1, batch_size)
        self._config, self._accelerator, self._images = config, accelerator, images
        self._total = 10 * EXAMPLE.warmup_steps
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._loop.optimizer, self._factor)
        self._losses = _Losses()
        self.step, self.seconds, self.loss = 0, 0.0, math.nan

    def _factor(self, step: int) -> float:
        if step < EXAMPLE.warmup_steps:
            return step / EXAMPLE.warmup_steps
        progress = min(1.0, (step - EXAMPLE.warmup_steps) / max(1, self._total - EXAMPLE.warmup_steps))
        return (1 + math.cos(math.pi * progress)) / 2

    def train_for(self, seconds: float, planned: float) -> None:
        """As `Racer` says."""
        start, slices = time.perf_counter(), max(self.seconds, seconds)
        if self.step:
            self._total = round(self.step * planned / slices)
        self._loop.unet.train()
        while time.perf_counter() < start + seconds:
            self._step()
        self.loss = self._losses.mean()
        self.seconds += time.perf_counter() - start

    def _step(self) -> None:
        device = self._accelerator.device
        picked = torch.randint(len(self._images), (self._config.training.batch_size,), device=device)
        is_mirrored = torch.rand(len(picked), 1, 1, 1, device=device) < 0.5
        clean = torch.where(is_mirrored, self._images[picked].flip(-1), self._images[picked])
        noise = torch.randn_like(clean)
        t = torch.randint(0, self._loop.noise_scheduler.config.num_train_timesteps, (len(clean),), device=device)
        noisy = self._loop.noise_scheduler.add_noise(clean, noise, t)
        with self._accelerator.autocast():
            output = self._loop.unet(noisy, t).sample
        loss = F.mse_loss(output.float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._loop.unet.parameters(), 1.0)
        self._loop.optimizer.step()
        self._schedule.step()
        self._loop.optimizer.zero_grad()
        self._loop.ema.step(self._loop.unet.parameters())
        self._losses.add(loss.detach())
        self.step += 1
        float(loss.detach())  # the example logs it at every step, and so waits for the device

    def draw(self, num_images: int, steps: int) -> Tensor:
        """As `Racer` says."""
        self._loop.ema.store(self._loop.unet.parameters())
        self._loop.ema.copy_to(self._loop.unet.parameters())
        grid = sampler(self._config, steps, self._accelerator.device)
        with self._accelerator.autocast():
            images = sample_images(self._loop.unet, grid, range(num_images), SamplingOptions(batch_size=512))
        self._loop.ema.restore(self._loop.unet.parameters())
        return images

    def state_dict(self) -> dict[str, Any]:
        """As `Racer` says."""
        return {
            "unet": self._loop.unet.state_dict(),
            "optimizer": self._loop.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "ema": self._loop.ema.state_dict(),
            "numbers": [self.step, self._total, self.seconds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Racer` says."""
        self._loop.unet.load_state_dict(state["unet"])
        self._loop.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._loop.ema.load_state_dict(state["ema"])
        self.step, self._total, self.seconds = state["numbers"]
