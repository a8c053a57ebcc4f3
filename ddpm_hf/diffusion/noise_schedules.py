"""Noise schedules: a name and a number of steps give the variances beta_t of the forward process.

`beta_t` is the variance of the noise that step t adds, q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)
(Ho et al. 2020, eq. 2). Everything is float64: products of a thousand factors near one are taken of these numbers.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pkgutil import resolve_name

import torch
from torch import Tensor

from ddpm_hf.diffusion.choices import NOISE_SCHEDULES


def linear(num_steps: int, start: float, end: float) -> Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(start, end, num_steps, dtype=torch.float64)


def scaled_linear(num_steps: int, start: float, end: float) -> Tensor:
    """An even grid of square roots: `quad` in Ho et al.'s code, `scaled_linear` in latent diffusion."""
    return linear(num_steps, start**0.5, end**0.5) ** 2


def const(num_steps: int, start: float, end: float) -> Tensor:
    return torch.full((num_steps,), end, dtype=torch.float64)


def _warmup(fraction: float) -> Callable[[int, float, float], Tensor]:
    """Linear from start to end over the first `fraction` of the steps, constant from there (Ho et al.'s code)."""

    def betas(num_steps: int, start: float, end: float) -> Tensor:
        num_warmup = int(num_steps * fraction)
        return torch.cat([linear(num_warmup, start, end), const(num_steps - num_warmup, start, end)])

    return betas


def jsd(num_steps: int, start: float, end: float) -> Tensor:
    """1/T, 1/(T-1), ..., 1, so alpha_bar_t = (T-1-t)/T falls evenly and ends at zero (Sohl-Dickstein et al. 2015)."""
    return 1.0 / torch.arange(num_steps, 0, -1, dtype=torch.float64)


def sigmoid(num_steps: int, start: float, end: float) -> Tensor:
    """The logistic function over [-6, 6], as in GeoDiff (Xu et al. 2022)."""
    return torch.sigmoid(linear(num_steps, -6.0, 6.0)) * (end - start) + start


def _from_alpha_bar(alpha_bar: Callable[[float], float]) -> Callable[[int, float, float], Tensor]:
    """Betas of a curve alpha_bar over time in [0, 1], each capped at 0.999 (Nichol & Dhariwal 2021, section 3.2)."""

    def betas(num_steps: int, start: float, end: float) -> Tensor:
        curve = [alpha_bar(i / num_steps) for i in range(num_steps + 1)]
        capped = [min(1 - after / before, 0.999) for before, after in pairwise(curve)]
        return torch.tensor(capped, dtype=torch.float64)

    return betas


def _cosine_alpha_bar(time: float) -> float:
    """Nichol & Dhariwal 2021, eq. 17, with their offset s = 0.008."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_alpha_bar(time: float) -> float:
    """log SNR falls along the quantiles of Laplace(0, 0.5) (Hang et al. 2024).

    The square root is not in the paper: diffusers takes it, and its checkpoints were trained with it.
    """
    log_snr = -0.5 * math.copysign(1.0, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
    return math.sqrt(1 / (1 + math.exp(-log_snr)))


squaredcos_cap_v2 = _from_alpha_bar(_cosine_alpha_bar)
laplace = _from_alpha_bar(_laplace_alpha_bar)
warmup10, warmup50 = _warmup(0.1), _warmup(0.5)


def make_betas(
    name: str, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02
) -> Tensor:
    """The betas of a named schedule.

    Args:
        name: one of `choices.NOISE_SCHEDULES`.
        num_train_timesteps: T, at least 1.
        beta_start: beta_0, where the schedule has a free start.
        beta_end: beta_{T-1}, where the schedule has a free end.

    Returns:
        float64 (T,), beta_0 first.

    Raises:
        NotImplementedError: for an unknown name (the type that diffusers' users expect).
        ValueError: for T < 1.
    """
    if name not in NOISE_SCHEDULES:
        raise NotImplementedError(f"beta_schedule={name!r} is not known; use one of {', '.join(NOISE_SCHEDULES)}.")
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps={num_train_timesteps} is not a number of steps; use 1 or more.")
    betas: Tensor = resolve_name(NOISE_SCHEDULES[name])(num_train_timesteps, beta_start, beta_end)
    return betas


def rescale_betas_zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar): the last step becomes pure noise, the first one stays (Lin et al. 2023, alg. 1).

    Args:
        betas: (T,), any floating type.

    Returns:
        float64 (T,), with alpha_bar_{T-1} = 0 exactly.

    Raises:
        ValueError: for fewer than two steps, of which none could stay.
    """
    if len(betas) < 2:
        raise ValueError("rescale_betas_zero_snr keeps the first step and makes the last one noise; use 2 or more.")
    root = torch.cumprod(1 - betas.double(), dim=0).sqrt()
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
