"""Every closed form of the Gaussian diffusion process, once.

Symbols follow Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM) and Nichol & Dhariwal 2021 (Improved DDPM);
docs/notation.md lists them. Time runs over t = 0 .. T-1, and t = -1 is clean data: alpha_bar(-1) = 1.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.diffusion.choices import PREDICTION_TYPES, VARIANCE_TYPES

CLEAN: Final = -1
"""The time of clean data, the end of every reverse process."""

LEAST_ALPHA_BAR: Final = 1e-60
"""Images are divided by its root, which float32 must hold."""


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0): its mean, written in two ways, and its standard deviation. All float64, of t's shape.

    mean = c_0 x_0 + c_t x_t = signal x_0 + direction noise
    """

    c_0: Tensor
    c_t: Tensor
    signal: Tensor
    direction: Tensor
    sigma: Tensor

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """c_0 x_0 + c_t x_t (Ho et al., eq. 7), (B, ...)."""
        return _sum(x_t, self.c_0, x_0, self.c_t, x_t)

    def mean_of_noise(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """signal x_0 + direction noise (Song et al., eq. 12), (B, ...). Equal to `mean` where the two make x_t."""
        return _sum(x_0, self.signal, x_0, self.direction, noise)


class GaussianDiffusion:
    """The forward process q of one noise schedule, and what follows from it in closed form.

    Times are integers or integer tensors. Functions of images take t as a scalar or as one time per image, (B,), and
    images as (B, ...). They compute in float32 at least, and return the dtype of their first argument, so that half
    precision costs one rounding at the end and none inside.

    Args:
        betas: (T,), beta_0 first.

    Attributes:
        num_train_timesteps: T.
        betas: float64 (T,) on the CPU.
        alphas_cumprod: float64 (T,) on the CPU, alpha_bar_t = prod_{s <= t} (1 - beta_s).

    Raises:
        ValueError: if betas is empty or not one-dimensional, or no process comes of it: a beta is outside 0 .. 1, too
            small to add noise, or so large that nothing of the image is left before the last step.

    Examples:
        >>> diffusion = GaussianDiffusion(torch.linspace(0.0001, 0.02, 1000))
        >>> x_0, noise = torch.zeros(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
        >>> x_t = diffusion.q_sample(x_0, 500, noise)
        >>> torch.allclose(diffusion.noise_of(x_0, x_t, 500), noise)
        True
    """

    def __init__(self, betas: Tensor) -> None:
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas has shape {tuple(betas.shape)}; expected one variance per step, (T,) with T >= 1.")
        self.betas = betas.detach().to("cpu", torch.float64)
        self.num_train_timesteps = len(self.betas)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self._check_noise()
        self._alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod])  # clean data first
        self._on_device: dict[torch.device, Tensor] = {}

    def _check_noise(self) -> None:
        """See that each step adds noise, and that each but the last leaves something of the image.

        Every closed form divides by the noise of a step, or by what is left of the image before it.
        """
        adds_noise = (self.betas <= 1) & (1 - self.betas < 1)
        if not adds_noise.all():
            t = int((~adds_noise).nonzero()[0])
            raise ValueError(
                f"the noise schedule has beta={float(self.betas[t]):g} at timestep {t}, and each must be a number "
                "above 0 and at most 1; look at beta_start, beta_end or trained_betas."
            )
        is_left = self.alphas_cumprod > LEAST_ALPHA_BAR
        is_left[-1] |= bool(self.alphas_cumprod[-1] == 0)  # pure noise at the last step is a design
        if not is_left.all():
            t = int((~is_left).nonzero()[0])
            raise ValueError(
                f"the noise schedule leaves nothing of the image from timestep {t} of {len(self.betas)} on (alpha_bar "
                f"{float(self.alphas_cumprod[t]):.2g}); use smaller betas or fewer timesteps."
            )

    def alpha_bar(self, t: int | Tensor) -> Tensor:
        """The share of x_0's variance that is left in x_t: float64, of t's shape, on t's device; alpha_bar(-1) = 1.

        Between two timesteps, which only floating-point tensors on the CPU can ask for, the `angle` is linear.

        Raises:
            ValueError: for times outside -1 .. T-1, if they lie on the CPU (on a GPU the check would wait for it, and
                the look-up itself fails).
        """
        if isinstance(t, int):
            self._check_times(t, t)
            return self._alpha_bar[t + 1]
        if t.device.type == "cpu" and t.numel() > 0:
            self._check_times(math.floor(t.min().item()), math.ceil(t.max().item()))
        if t.is_floating_point():
            angle = np.interp(t.numpy(), np.arange(CLEAN, len(self.betas)), self._angles)
            return torch.as_tensor(np.cos(angle) ** 2, dtype=torch.float64)
        if t.device not in self._on_device:
            dtype = torch.float32 if t.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
            self._on_device[t.device] = self._alpha_bar.to(t.device, dtype)
        return self._on_device[t.device].index_select(0, t.flatten() + 1).view(t.shape)

    def _check_times(self, first: int, last: int) -> None:
        if first < CLEAN or last >= self.num_train_timesteps:
            raise ValueError(f"timesteps {first} .. {last} are outside {CLEAN} .. {self.num_train_timesteps - 1}.")

    def angle(self, t: int) -> float:
        """phi in x_t = cos(phi) x_0 + sin(phi) noise: 0 for clean data, pi / 2 where nothing is left of it."""
        self._check_times(t, t)
        return float(self._angles[t + 1])

    def time_at(self, angle: float) -> float:
        """The time that has an angle, a fraction where it lies between two timesteps; the inverse of `angle`."""
        return float(np.interp(angle, self._angles, np.arange(CLEAN, len(self.betas))))

    @cached_property
    def _angles(self) -> np.ndarray:
        """Those of -1 .. T-1."""
        return torch.atan2((1 - self._alpha_bar).sqrt(), self._alpha_bar.sqrt()).numpy()

    def snr(self, t: int | Tensor) -> Tensor:
        """The signal-to-noise ratio alpha_bar / (1 - alpha_bar) (Kingma et al. 2021): float64; infinite at t = -1."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar / (1 - alpha_bar)

    def q_sample(self, x_0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al., eq. 4)."""
        alpha_bar = self.alpha_bar(t)
        return _sum(x_0, alpha_bar.sqrt(), x_0, (1 - alpha_bar).sqrt(), noise)

    def target(self, x_0: Tensor, noise: Tensor, t: int | Tensor, prediction_type: str) -> Tensor:
        """What a network of this prediction type should output for x_t = q_sample(x_0, t, noise).

        * `epsilon`: the noise. `sample`: x_0.
        * `v_prediction`: sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022).
        * `posterior_mean`: the mean of q(x_{t-1} | x_t, x_0) (Ho et al., eq. 7).

        Raises:
            ValueError: for an unknown prediction type.
        """
        _check_prediction_type(prediction_type)
        if prediction_type == "epsilon":
            return noise
        if prediction_type == "sample":
            return x_0
        if prediction_type == "v_prediction":
            alpha_bar = self.alpha_bar(t)
            return _sum(x_0, alpha_bar.sqrt(), noise, -(1 - alpha_bar).sqrt(), x_0)
        return self.posterior(t, t - 1).mean(x_0, self.q_sample(x_0, t, noise))

    def predict(
        self, model_output: Tensor, x_t: Tensor, t: int | Tensor, prediction_type: str
    ) -> tuple[Tensor, Tensor]:
        """The (x_0, noise) that a network's output stands for; together they make x_t again. Inverts `target`.

        Where alpha_bar_t = 0, x_t is nothing but noise, and an `epsilon` network says nothing about x_0: x_0 is then 0,
        the middle of the data's range. (The schedulers refuse such a step.)

        Raises:
            ValueError: for an unknown prediction type.
        """
        _check_prediction_type(prediction_type)
        alpha_bar = self.alpha_bar(t)
        signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if prediction_type == "epsilon":
            return _sum(x_t, _inverse(signal), x_t, -spread * _inverse(signal), model_output), model_output
        if prediction_type == "v_prediction":
            x_0 = _sum(x_t, signal, x_t, -spread, model_output)
            return x_0, _sum(x_t, spread, x_t, signal, model_output)
        if prediction_type == "sample":
            x_0 = model_output
        else:
            posterior = self.posterior(t, t - 1)
            x_0 = _sum(x_t, 1 / posterior.c_0, model_output, -posterior.c_t / posterior.c_0, x_t)
        return x_0, self.noise_of(x_0, x_t, t)

    def noise_of(self, x_0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The noise that makes x_t of x_0: (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)."""
        alpha_bar = self.alpha_bar(t)
        scale = _inverse((1 - alpha_bar).sqrt())
        return _sum(x_t, scale, x_t, -alpha_bar.sqrt() * scale, x_0)

    def posterior(self, t: int | Tensor, s: int | Tensor, eta: float = 1.0) -> Posterior:
        """q(x_s | x_t, x_0) for any s < t and any eta (Song et al., eq. 7 and 16).

            sigma^2 = eta^2 (1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s)
            signal = sqrt(alpha_bar_s),  direction = sqrt(1 - alpha_bar_s - sigma^2)
            c_t = direction / sqrt(1 - alpha_bar_t),  c_0 = signal - sqrt(alpha_bar_t) c_t

        eta = 1 is Bayes' rule for the Markov chain, so DDPM on neighbouring steps; eta = 0 is DDIM on any grid.

        Args:
            t: the time to leave, 0 .. T-1.
            s: the time to reach, -1 .. t.
            eta: 0 .. 1.
        """
        alpha_bar_t, alpha_bar_s = self.alpha_bar(t), self.alpha_bar(s)
        variance = eta**2 * (1 - alpha_bar_s) * _inverse(1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
        signal = alpha_bar_s.sqrt()
        direction = (1 - alpha_bar_s - variance).clamp(min=0).sqrt()  # a rounding may be below zero at eta = 1
        c_t = direction * _inverse((1 - alpha_bar_t).sqrt())
        return Posterior(signal - alpha_bar_t.sqrt() * c_t, c_t, signal, direction, variance.sqrt())

    def log_variance(
        self, t: int | Tensor, s: int | Tensor, variance_type: str, model_variance: Tensor | None = None
    ) -> Tensor:
        """The logarithm of the variance of p(x_s | x_t).

        * `fixed_small`: the posterior's (eta = 1). It is 0 for s = -1, where the logarithm is that of the posterior
          from t = 1 to 0 instead (Ho et al.'s code), which the likelihood's last term needs.
        * `fixed_large`: beta of the step, 1 - alpha_bar_t / alpha_bar_s; from t = 0 the same exception. Ho et al. show
          it to be right for data of unit variance at the full number of steps; on a shorter grid it is far too noisy.
        * `learned`: what the network says is the logarithm.
        * `learned_range`: the network's v in [-1, 1] goes from the small to the large one (Nichol & Dhariwal, eq. 15).

        Args:
            t: the time to leave; one time per image where the variance is learned from a batch.
            s: the time to reach, below t.
            variance_type: one of `VARIANCE_TYPES`.
            model_variance: (B, ...), the second half of the network's channels, for the learned kinds.

        Returns:
            float64 of t's shape for the fixed kinds, of `model_variance`'s shape and dtype for the learned ones.

        Raises:
            ValueError: for an unknown kind, or a learned one without `model_variance`.
        """
        if variance_type not in VARIANCE_TYPES:
            raise ValueError(f"variance_type={variance_type!r} is not known; use one of {', '.join(VARIANCE_TYPES)}.")
        if variance_type.startswith("learned") and model_variance is None:
            raise ValueError(
                f"variance_type={variance_type!r} needs a network with twice the image's channels, the second half for "
                "the variance; this one has none (set out_channels = 2 * in_channels, or variance_type='fixed_small')."
            )
        if variance_type == "learned":
            assert model_variance is not None
            return model_variance
        small, large = self._log_small(t, s), self._log_large(t, s)
        if variance_type == "learned_range":
            assert model_variance is not None
            middle, half_range = (large + small) / 2, (large - small) / 2
            ones = torch.ones_like(model_variance)
            return _sum(model_variance, middle, ones, half_range, model_variance)
        return large if variance_type.startswith("fixed_large") else small

    def _log_small(self, t: int | Tensor, s: int | Tensor) -> Tensor:
        variance = self.posterior(t, s).sigma ** 2
        return torch.where(variance > 0, variance, self._first_variance).log()

    def _log_large(self, t: int | Tensor, s: int | Tensor) -> Tensor:
        beta = 1 - self.alpha_bar(t) / self.alpha_bar(s)
        is_first = torch.as_tensor(t, device=beta.device) == 0
        return torch.where(is_first, self._first_variance, beta).log()

    @cached_property
    def _first_variance(self) -> float:
        """The posterior variance from t = 1 to 0, which stands in where the true one is 0; with T = 1, beta_0."""
        return float(self.posterior(1, 0).sigma ** 2 if self.num_train_timesteps > 1 else self.betas[0])


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type={prediction_type!r} is not known; use one of {', '.join(PREDICTION_TYPES)}.")


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0: the ends of the process, where the quantity it scales carries nothing."""
    return torch.where(x == 0, x, 1 / x)


def _sum(like: Tensor, a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a x + b y in float32 at least, rounded once to `like`'s dtype; a and b are scalars or (B,), x and y (B, ...)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    a, b = (c.to(dtype) if c.ndim == 0 else c.to(x.device, dtype).view(-1, *[1] * (x.ndim - 1)) for c in (a, b))
    return (a * x.to(dtype) + b * y.to(dtype)).to(like.dtype)
