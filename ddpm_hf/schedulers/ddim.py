"""DDIMScheduler: deterministic sampling, and all between it and DDPM."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin  # noqa: F401  # diffusers' loader looks for it beside the class
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ddpm_hf.diffusion.denoiser import split_variance
from ddpm_hf.schedulers.base import GaussianScheduler, Generators, SchedulerOutput, randn_like


class DDIMScheduler(GaussianScheduler):
    """The non-Markovian samplers of Song et al. 2021 (eq. 12): deterministic at eta = 0, DDPM's at eta = 1.

    All arguments but one are those of `DDPMScheduler`.

    Args:
        set_alpha_to_one: end at clean data; False ends at the noise level of time 0.

    Examples:
        >>> from ddpm_hf import DDPMScheduler
        >>> scheduler = DDIMScheduler.from_config(DDPMScheduler(beta_schedule="sigmoid").config)
        >>> scheduler.set_timesteps(100, timestep_spacing="quadratic")  # three of which are the same
        >>> len(scheduler.timesteps)
        97
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._build()
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
        """sigma^2 of eta = 1 from one time to another, -1 being the end. Arguments as diffusers has them."""
        posterior = self.diffusion.posterior(self._time(timestep), self._time_of(int(prev_timestep)))
        return posterior.sigma**2

    def _time_of(self, s: int) -> int:
        return s if self.config.set_alpha_to_one else max(s, 0)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Go from x_t to x_s, where s is the next lower time of the grid (Song et al. 2021, eq. 12 and 16).

        Args:
            model_output: (B, C, ...), or (B, 2C, ...) from a network that learned a variance, which DDIM does not use.
            timestep: t, one integer for the batch; it need not be on the grid.
            sample: x_t, (B, C, ...).
            eta: 0 (no noise) .. 1 (the noise of DDPM).
            use_clipped_model_output: take the noise anew from the clipped x_0, so that the two make x_t again.
            generator: one, or one per image; drawn from when eta > 0.
            variance_noise: the noise itself, (B, C, ...), in place of a generator.
            return_dict: False for the plain tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: before `set_timesteps`, for an eta outside 0 .. 1, for both a generator and noise, an unknown
                prediction type, wrong channels, or a timestep out of range.
        """
        t = self._time_to_leave(timestep, eta)
        if eta > 0 and generator is not None and variance_noise is not None:
            raise ValueError("Give DDIMScheduler.step either generator or variance_noise, and not both.")
        model_output, _ = split_variance(model_output, sample, may_have_variance=True)
        x_0, noise = self._predict(model_output, t, sample)
        if use_clipped_model_output:
            noise = self.diffusion.noise_of(x_0, sample, t)
        posterior = self.diffusion.posterior(t, self._time_of(self._previous(t)), eta)
        prev_sample = posterior.mean_of_noise(x_0, noise)
        if eta > 0:
            fresh = randn_like(model_output, generator) if variance_noise is None else variance_noise
            prev_sample = prev_sample + posterior.sigma.to(prev_sample.dtype) * fresh
        return SchedulerOutput(prev_sample, x_0) if return_dict else (prev_sample, x_0)
