"""What DDPMScheduler and DDIMScheduler share: tables, the timesteps to visit, and the prediction of x_0.

Drop-in replacements for diffusers' classes of the same names: same config keys, call signatures and outputs.
Every formula is GaussianDiffusion's. docs/differences.md lists where they differ from diffusers 0.42, and why.
"""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, get_type_hints

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ddpm_hf.diffusion.checks import check_numbers
from ddpm_hf.diffusion.denoiser import Clipping, Denoiser, Restriction, Thresholding, denoiser_class
from ddpm_hf.diffusion.noise_schedules import make_betas, rescale_betas_zero_snr
from ddpm_hf.diffusion.process import CLEAN, GaussianDiffusion
from ddpm_hf.schedulers.timestep_spacing import angle_timesteps, custom_timesteps, inference_timesteps
from ddpm_hf.settings import as_int, check_types

logger = logging.getLogger(__name__)

_SCHEDULES_OF_EVERY_SCHEDULER = ("linear", "scaled_linear", "squaredcos_cap_v2")
_ELSEWHERE = {"quadratic": "leading", "angle": "trailing"}  # our spacings, and what other libraries take for them
_SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_PROCESS_KEYS = (*_SCHEDULE_KEYS, "trained_betas", "prediction_type")

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class SchedulerOutput(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """What a step returns, both of the sample's shape and dtype.

    Attributes:
        prev_sample: x_s, the sample at the next entry of the grid.
        pred_original_sample: the x_0 that the network predicts, after clipping or thresholding.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class GaussianScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """What both schedulers share: tables, timestep spacing, the forward process, the prediction of x_0."""

    _compatibles: ClassVar = [e.name for e in KarrasDiffusionSchedulers]
    order = 1
    init_noise_sigma = 1.0

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers'; what `_build` has added to the config for other schedulers to read gives way to `kwargs`."""
        if isinstance(config, dict):
            config = dict(config)
            is_named = config.get("beta_schedule", "linear") not in _SCHEDULES_OF_EVERY_SCHEDULER
            if is_named and not kwargs.keys().isdisjoint(_SCHEDULE_KEYS):
                config.pop("trained_betas", None)
            if "timestep_spacing" in kwargs:
                config.pop("_timestep_spacing", None)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def _build(self) -> None:
        """Make the tables from the registered config, and the config readable by every diffusers scheduler.

        Raises:
            ValueError: the config holds a value of another type or out of its range, or no process comes of it.
        """
        config = self.config
        with suppress(NameError):  # of a subclass elsewhere, whose annotations name what only a checker imports
            check_types(config, get_type_hints(type(self).__init__))
        check_numbers(config)
        if config.trained_betas is not None:
            betas = torch.tensor(np.asarray(config.trained_betas), dtype=torch.float64)
        else:
            betas = make_betas(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
            if config.beta_schedule not in _SCHEDULES_OF_EVERY_SCHEDULER:
                self.register_to_config(trained_betas=betas.tolist())
        if "_use_default_values" in config:
            # `from_config` of another class puts its own defaults in the place of these. The process that the network
            # was trained on must stay: other classes' beta_start and beta_end differ.
            defaults = [key for key in config["_use_default_values"] if key not in _PROCESS_KEYS]
            self.register_to_config(_use_default_values=defaults)
        if config.timestep_spacing in _ELSEWHERE:
            spacing = config.timestep_spacing
            self.register_to_config(timestep_spacing=_ELSEWHERE[spacing], _timestep_spacing=spacing)
        if config.rescale_betas_zero_snr:
            betas = rescale_betas_zero_snr(betas)
        if config.thresholding and config.sample_max_value <= 1:
            logger.warning(
                "thresholding=True with sample_max_value=%s only clips to [-1, 1]; give a sample_max_value above 1.",
                config.sample_max_value,
            )
        self.diffusion = GaussianDiffusion(betas)
        self.betas = self.diffusion.betas.float()
        self.alphas = (1 - self.diffusion.betas).float()
        self.alphas_cumprod = self.diffusion.alphas_cumprod.float()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    @cached_property
    def denoiser(self) -> Denoiser:
        """What outputs of a network of this config mean; it has no network of its own."""
        config = self.config
        restriction: Restriction | None = None
        if config.thresholding:
            restriction = Thresholding(config.dynamic_thresholding_ratio, config.sample_max_value)
        elif config.clip_sample:
            restriction = Clipping(config.clip_sample_range)
        # A DDIMScheduler has the variance type of the DDPMScheduler that it was made of, if of one.
        variance_type = config.get("variance_type", "fixed_small")
        return denoiser_class(config.prediction_type)(
            self.diffusion, config.prediction_type, variance_type, restriction
        )

    def __len__(self) -> int:
        """T, the number of training steps."""
        return int(self.config.num_train_timesteps)

    @property
    def timesteps(self) -> Tensor:
        """int64 (S,), the times to visit, descending."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        self._timesteps = timesteps
        self._ascending: list[int] = sorted(timesteps.tolist())  # on the host, so that a step waits for no device

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        timestep_spacing: str | None = None,
    ) -> None:
        """Choose the times to visit: a number of them, or a list.

        Args:
            num_inference_steps: S, 1 .. T.
            device: where `self.timesteps` shall lie.
            timesteps: the times themselves, strictly descending, within 0 .. T-1.
            timestep_spacing: one of `time_grids.TIMESTEP_SPACINGS`, in place of the config's.

        Raises:
            ValueError: when both or none of S and a list are given, or they are out of range or order.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Give set_timesteps either num_inference_steps or timesteps, and not both.")
        total = len(self)
        if self.diffusion.num_train_timesteps != total:
            raise ValueError(
                f"trained_betas has {self.diffusion.num_train_timesteps} entries but num_train_timesteps is {total}; "
                "make them equal."
            )
        spacing = timestep_spacing
        if spacing is None:
            spacing = self.config.get("_timestep_spacing", self.config.timestep_spacing)
        if timesteps is not None:
            grid = custom_timesteps(timesteps, total)
        elif spacing == "angle":
            grid = angle_timesteps(as_int("num_inference_steps", num_inference_steps), self.diffusion)
        else:
            steps = as_int("num_inference_steps", num_inference_steps)
            grid = inference_timesteps(spacing, steps, total, self.config.steps_offset)
        self.num_inference_steps = len(grid)
        self.timesteps = torch.tensor(grid, dtype=torch.int64, device=device)
        self._warn_of_bad_grid(is_leading=timesteps is None and spacing == "leading")

    def _warn_of_bad_grid(self, is_leading: bool) -> None:
        first, steps, total = self._ascending[-1], len(self._ascending), len(self)
        if is_leading and (first < total - 2 * (total // steps) or first < total // 2):
            logger.warning(
                "%d leading steps start at timestep %d of %d, where images are not yet pure noise; use "
                "timestep_spacing='trailing' or 'linspace', or another divisor of %d.",
                steps, first, total, total,
            )  # fmt: skip

    def previous_timestep(self, timestep: int | Tensor) -> Tensor:
        """The time that a step from `timestep` leads to: the next lower of the grid, -1 at its end. int64, 0-d."""
        return torch.tensor(self._previous(self._time(timestep)))

    def _time(self, timestep: int | Tensor) -> int:
        t = as_int("timestep", timestep)
        if not 0 <= t < self.diffusion.num_train_timesteps:
            raise ValueError(f"timestep={t} is outside 0 .. {self.diffusion.num_train_timesteps - 1}.")
        return t

    def _time_to_leave(self, timestep: int | Tensor, eta: float) -> int:
        """The time of a step that adds noise by eta."""
        if self.num_inference_steps is None:
            raise ValueError(
                f"{type(self).__name__} has no timesteps yet; call set_timesteps(num_inference_steps) first."
            )
        check_types({"eta": eta}, {"eta": float})
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} is outside 0 (DDIM) .. 1 (DDPM).")
        return self._time(timestep)

    def _previous(self, t: int) -> int:
        position = bisect_left(self._ascending, t)
        return self._ascending[position - 1] if position > 0 else CLEAN

    def scale_model_input(self, sample: Tensor, timestep: int | None = None) -> Tensor:
        """The sample itself: these processes preserve variance."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of x_0, noise and one time per image (or one for all): the forward process in one jump."""
        return self.diffusion.q_sample(original_samples, self._times(timesteps, original_samples), noise)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of `v_prediction` for x_0 = `sample`."""
        return self.diffusion.target(sample, noise, self._times(timesteps, sample), "v_prediction")

    def _times(self, timesteps: Tensor, images: Tensor) -> Tensor:
        """Timesteps beside images, one for all or one each; the ValueError of others says what they are."""
        t = torch.as_tensor(timesteps)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool or t.numel() not in (1, len(images)):
            raise ValueError(
                f"timesteps is {str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)} and must be integers, "
                f"one for all or one for each of the {len(images)} images."
            )
        return t.to(images.device)

    def _predict(self, model_output: Tensor, t: int, sample: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0 clipped or thresholded, noise), from the network's output."""
        if self.config.prediction_type == "epsilon" and self.diffusion.alpha_bar(t) == 0:
            raise ValueError(
                f"prediction_type='epsilon' says nothing about the image at timestep {t}, where alpha_bar is 0; use a "
                "model with 'v_prediction' or 'sample', or timesteps that start lower."
            )
        return self.denoiser.predict(model_output, sample, t)


def randn_like(x: Tensor, generator: Generators) -> Tensor:
    noise: Tensor = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return noise
