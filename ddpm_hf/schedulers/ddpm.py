"""DDPMScheduler: ancestral sampling."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin  # noqa: F401  # diffusers' loader looks for it beside the class
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ddpm_hf.diffusion.denoiser import split_variance
from ddpm_hf.diffusion.process import CLEAN
from ddpm_hf.schedulers.base import GaussianScheduler, Generators, SchedulerOutput, logger, randn_like


class DDPMScheduler(GaussianScheduler):
    """Ancestral sampling of Ho et al. 2020 (algorithm 2), on all timesteps or some of them.

    Args:
        num_train_timesteps: T, the number of timesteps.
        beta_start: first variance, beta_0.
        beta_end: last variance, beta_{T-1}.
        beta_schedule: noise schedule: linear, scaled_linear, squaredcos_cap_v2 (cosine), sigmoid, laplace, const,
            warmup10, warmup50 or jsd. Those that not every diffusers scheduler knows are written to the config as
            `trained_betas` too.
        trained_betas: the T betas themselves, in place of `beta_schedule`.
        variance_type: variance of the noise that a step adds: fixed_small, fixed_large (for all T steps only),
            learned or learned_range; see `GaussianDiffusion.log_variance`.
        clip_sample: clip the predicted x_0 to [-clip_sample_range, clip_sample_range].
        prediction_type: what the network outputs: epsilon, sample, v_prediction or posterior_mean.
        thresholding: dynamic thresholding in place of clipping.
        dynamic_thresholding_ratio: quantile of dynamic thresholding, 0 .. 1.
        clip_sample_range: limit of clipping.
        sample_max_value: largest threshold of dynamic thresholding, above 1.
        timestep_spacing: leading, linspace, trailing or quadratic. `quadratic` is kept as `_timestep_spacing`, beside a
            `timestep_spacing` of `leading`, so that plain diffusers can use the saved config.
        steps_offset: number added to each timestep of `leading`.
        rescale_betas_zero_snr: rescale the betas so that the last timestep is pure noise (Lin et al. 2023).

    Examples:
        >>> scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        >>> scheduler.set_timesteps(4, timestep_spacing="trailing")
        >>> scheduler.timesteps.tolist()
        [999, 749, 499, 249]
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._build()

    @property
    def variance_type(self) -> str:
        """The kind of variance of the noise that a step adds."""
        return str(self.config.variance_type)

    def _warn_of_bad_grid(self, is_leading: bool) -> None:
        super()._warn_of_bad_grid(is_leading)
        if self.variance_type.startswith("fixed_large") and len(self.timesteps) < len(self):
            logger.warning(
                "variance_type=%r is only right at all %d steps and far too noisy at %d; use 'fixed_small', or DDIM.",
                self.variance_type, len(self), len(self.timesteps),
            )  # fmt: skip

    def _get_variance(
        self, t: int, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        """The variance of p(x_s | x_t) for a step from t on the present grid. Arguments as diffusers has them."""
        kind = self.variance_type if variance_type is None else variance_type
        t = self._time(t)
        s = self._previous(t)
        if s == CLEAN and kind.startswith("fixed_small"):
            return torch.zeros((), dtype=torch.float64)  # its logarithm is a stand-in
        return self.diffusion.log_variance(t, s, kind, predicted_variance).exp()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Draw x_s from p(x_s | x_t), where s is the next lower time of the grid (Ho et al. 2020, eq. 6 and 7).

        Args:
            model_output: (B, C, ...), or (B, 2C, ...) where the variance is learned.
            timestep: t, one integer for the batch.
            sample: x_t, (B, C, ...).
            generator: one, or one per image; drawn from at every step but the last.
            return_dict: False for the plain tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: for an unknown prediction or variance type, wrong channels, or a timestep out of range.
        """
        t = self._time(timestep)
        s = self._previous(t)
        is_learned = self.variance_type in ("learned", "learned_range")
        model_output, model_variance = split_variance(model_output, sample, may_have_variance=is_learned)
        x_0, _ = self._predict(model_output, t, sample)
        prev_sample = self.diffusion.posterior(t, s).mean(x_0, sample)
        if s > CLEAN:
            noise = randn_like(model_output, generator)
            log_variance = self.denoiser.log_variance(model_variance, t, s)
            prev_sample = prev_sample + (log_variance / 2).exp().to(prev_sample.dtype) * noise
        return SchedulerOutput(prev_sample, x_0) if return_dict else (prev_sample, x_0)
