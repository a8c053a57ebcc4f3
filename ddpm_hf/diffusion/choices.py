"""The parts of the mathematics that settings choose by name, and where each stands; nothing here loads torch.

A place is "module:name", for `pkgutil.resolve_name`.
"""

from typing import Final

PREDICTION_TYPES: Final = {
    "epsilon": "ddpm_hf.diffusion.denoiser:Denoiser",
    "sample": "ddpm_hf.diffusion.denoiser:Denoiser",
    "v_prediction": "ddpm_hf.diffusion.denoiser:Denoiser",
    "posterior_mean": "ddpm_hf.diffusion.denoiser:Denoiser",
}
"""What a network may output, with the class that reads it: the noise, x_0, v (Salimans & Ho 2022), or the mean of
q(x_{t-1} | x_t, x_0)."""

VARIANCE_TYPES: Final = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)
"""The variances of p(x_s | x_t). The `_log` names are diffusers' own and mean the same variances as those without."""

LOSSES: Final = ("simple", "kl", "hybrid")
"""`simple` is the squared error (Ho et al. 2020, eq. 14), `kl` the variational bound (eq. 5), `hybrid` both (Nichol &
Dhariwal 2021, eq. 16)."""

LOSS_WEIGHTINGS: Final = ("none", "min_snr", "p2")
"""The weights of the squared error: `min_snr` is Hang et al. 2023 (eq. 9), `p2` is Choi et al. 2022 (eq. 8)."""

TIMESTEP_SAMPLERS: Final = {
    "uniform": "ddpm_hf.diffusion.timestep_sampling:TimestepSampler",
    "stratified": "ddpm_hf.diffusion.timestep_sampling:StratifiedTimesteps",
    "importance": "ddpm_hf.diffusion.timestep_sampling:ImportanceTimesteps",
}
"""How the timesteps of a training batch are drawn."""

NOISE_SCHEDULES: Final = {
    "linear": "ddpm_hf.diffusion.noise_schedules:linear",
    "scaled_linear": "ddpm_hf.diffusion.noise_schedules:scaled_linear",
    "squaredcos_cap_v2": "ddpm_hf.diffusion.noise_schedules:squaredcos_cap_v2",
    "sigmoid": "ddpm_hf.diffusion.noise_schedules:sigmoid",
    "laplace": "ddpm_hf.diffusion.noise_schedules:laplace",
    "const": "ddpm_hf.diffusion.noise_schedules:const",
    "warmup10": "ddpm_hf.diffusion.noise_schedules:warmup10",
    "warmup50": "ddpm_hf.diffusion.noise_schedules:warmup50",
    "jsd": "ddpm_hf.diffusion.noise_schedules:jsd",
}
"""The noise schedules: functions (T, beta_start, beta_end) -> betas."""

TIMESTEP_SPACINGS: Final = ("leading", "linspace", "trailing", "quadratic", "angle")
"""The ways to choose S of T times; see `schedulers.timestep_spacing`."""
