"""AdamsScheduler: good images in five steps, from a straight line through the last two predictions of x_0."""

import math
from collections.abc import Sequence
from typing import Any

from diffusers import SchedulerMixin  # noqa: F401  # diffusers' loader looks for it beside the class
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ddpm_hf.diffusion.denoiser import split_variance
from ddpm_hf.diffusion.process import CLEAN
from ddpm_hf.schedulers.base import GaussianScheduler, Generators, SchedulerOutput, randn_like


class AdamsScheduler(GaussianScheduler):
    r"""DDIM of second order: Adams and Bashforth's method with two nodes, for the x_0 of a step.

    A step of DDIM is exact if the network predicts the same x_0 all along it. Here x_0 lies on a line in the angle phi
    between signal and noise, cot(phi) = sqrt(alpha_bar / (1 - alpha_bar)), through the predictions at t and at the time
    before it. Without noise, cot(phi) is what the x_0 of a step counts by, so the step takes the x_0 of the line at
    cot(phi) = (cot(phi_t) + cot(phi_s)) / 2, the midpoint rule. The last step takes that at phi = 0, clean data.
    The line makes up for most of what a long last step leaves out. The first step is DDIM's.

    DPM-Solver++ (Lu et al. 2022) and UniPC (Zhao et al. 2023) have lines in log(cot(phi)), which is infinite at both
    ends of the process. The angle is finite, so that no step needs an exception, nor a schedule without signal at T.

    All arguments are those of `DDIMScheduler`. A pipeline's folder names DDIMScheduler for plain diffusers, which lacks
    this one. `diffusers.DDPMPipeline` draws with it; `diffusers.DDIMPipeline` would make a DDIMScheduler of it.

    Examples:
        >>> from ddpm_hf import AdamsScheduler, DDPMScheduler
        >>> scheduler = AdamsScheduler.from_config(DDPMScheduler().config)
        >>> scheduler.set_timesteps(5)
        >>> scheduler.timesteps.tolist()
        [999, 799, 599, 399, 199]
    """

    _before: tuple[int, Tensor] | None = None  # the time before this one, and the x_0 predicted there

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "trailing",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._build()

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As its base class; the first step knows nothing of those before."""
        super().set_timesteps(*args, **options)
        self._before = None

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Go from x_t to x_s, where s is the next lower time of the grid.

        Args:
            model_output: (B, C, ...), or (B, 2C, ...) from a network that learned a variance, which is not used.
            timestep: t, one integer for the batch. At one that is not below the last one's, sampling begins anew.
            sample: x_t, (B, C, ...).
            eta: 0 (no noise) .. 1 (the noise of DDPM).
            generator: one, or one per image; drawn from when eta > 0.
            return_dict: False for the plain tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: before `set_timesteps`, for an eta outside 0 .. 1, an unknown prediction type, wrong channels,
                or a timestep out of range.
        """
        t = self._time_to_leave(timestep, eta)
        x_0, _ = self._predict(split_variance(model_output, sample)[0], t, sample)
        s = self._previous(t)
        posterior = self.diffusion.posterior(t, s, eta)
        prev_sample = posterior.mean(self._along_the_step(x_0, t, s), sample)
        if eta > 0:
            prev_sample = prev_sample + posterior.sigma.to(prev_sample.dtype) * randn_like(sample, generator)
        return SchedulerOutput(prev_sample, x_0) if return_dict else (prev_sample, x_0)

    def _along_the_step(self, x_0: Tensor, t: int, s: int) -> Tensor:
        """The x_0 that stands for those between t and s, (B, C, ...), from the predictions at t and before it."""
        before, self._before = self._before, (t, x_0)
        if before is None or before[0] <= t:
            return x_0
        angle = self.diffusion.angle(t)
        middle = 0.0 if s == CLEAN else math.atan(2 / (1 / math.tan(angle) + 1 / math.tan(self.diffusion.angle(s))))
        share = (angle - middle) / (self.diffusion.angle(before[0]) - angle)
        return x_0 + share * (x_0 - before[1])
