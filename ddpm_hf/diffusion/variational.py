"""The terms of the variational bound on the negative log-likelihood (Ho et al. 2020, eq. 5), in bits per dimension.

    L = L_T + sum over t = T-1 .. 1 of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) - log p(x_0 | x_{t=0})

Each term is that of one image, divided by the number of its values and by ln 2. Everything is computed in the dtype of
x_0: float32 is enough to train with, float64 is for figures.
"""

import math

import torch
from torch import Tensor

from ddpm_hf.diffusion.denoiser import Denoiser, split_variance
from ddpm_hf.diffusion.process import GaussianDiffusion


def bound_term(denoiser: Denoiser, model_output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The term of each image at its own t: the divergence from the posterior, and at t = 0 the decoder's code length.

    Args:
        denoiser: reads the output; its restriction of x_0 counts too, as in samplers, and its bins.
        model_output: (B, C, ...), or (B, 2C, ...) where the variance is learned, for x_t and t.
        x_0: (B, C, ...), images of the levels of the denoiser's bins in [-1, 1].
        x_t: (B, C, ...).
        t: int64 (B,), within 0 .. T-1.

    Returns:
        (B,), bits per dimension.

    Raises:
        ValueError: for an unknown prediction or variance type, or a learned one without its channels.
    """
    output, model_variance = split_variance(model_output, x_0)
    predicted_x_0, _ = denoiser.predict(output, x_t, t)
    posterior = denoiser.diffusion.posterior(t, t - 1)
    mean, true_mean = posterior.mean(predicted_x_0, x_t), posterior.mean(x_0, x_t)
    log_variance = _like(denoiser.log_variance(model_variance, t, t - 1), x_0)
    true_log_variance = _like(denoiser.diffusion.log_variance(t, t - 1, "fixed_small"), x_0)
    divergence = normal_divergence(true_mean, true_log_variance, mean, log_variance)
    code_length = -discretised_log_likelihood(x_0, mean, (log_variance / 2).exp(), _half_bin(denoiser, x_0))
    is_first = (t == 0).view(-1, *[1] * (x_0.ndim - 1))
    return bits_per_dimension(torch.where(is_first, code_length, divergence))


def prior_term(diffusion: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """L_T: the divergence of q(x_{T-1} | x_0) from N(0, I) of each image, (B,) bits per dimension."""
    alpha_bar = diffusion.alpha_bar(diffusion.num_train_timesteps - 1).to(x_0)
    zero = torch.zeros((), dtype=x_0.dtype, device=x_0.device)
    return bits_per_dimension(normal_divergence(alpha_bar.sqrt() * x_0, (1 - alpha_bar).log(), zero, zero))


def normal_divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))) of each value, in nats."""
    ratio = log_variance - other_log_variance
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return (ratio.exp() - 1 - ratio + distance) / 2


def discretised_log_likelihood(x: Tensor, mean: Tensor, sigma: Tensor, half_bin: Tensor | float = 1 / 255) -> Tensor:
    """log of the probability that N(mean, sigma^2) gives to the bin of x (Ho et al. 2020, eq. 13), in nats.

    The bins are those of evenly spaced levels from -1 to 1; the first and the last reach to infinity, so the
    probabilities of all levels sum to one. Exact in the far tails too, and with gradients, where a difference of two
    distribution functions is 0.

    Args:
        x: values on the levels.
        mean: mean of the distribution, of x's shape.
        sigma: standard deviation, of x's shape.
        half_bin: half the distance of two levels, 1 / 255 for 256 of them; anything that goes with x's shape.
    """
    is_open = x.abs() > 1 - half_bin
    # The bin is mirrored to the side of the lower tail: it reaches from `bottom` (or minus infinity) to `top`.
    top = (half_bin - torch.where(is_open, (x - mean) * x.sign(), (x - mean).abs())) / sigma
    bottom = top - 2 * half_bin / sigma

    near = torch.special.ndtr(top.clamp(min=0)) - torch.where(is_open, 0.0, torch.special.ndtr(bottom))
    # ndtr(z) = exp(-z^2 / 2) erfcx(-z / sqrt 2) / 2, whose large factor is taken out of the difference.
    tail_top = top.clamp(max=0)
    tail_bottom = tail_top - 2 * half_bin / sigma
    scale = ((tail_top.square() - tail_bottom.square()) / 2).exp()
    scaled_bottom = torch.special.erfcx(-tail_bottom / math.sqrt(2)) * scale
    scaled = torch.special.erfcx(-tail_top / math.sqrt(2)) - torch.where(is_open, 0.0, scaled_bottom)
    tail = (scaled / 2).log() - tail_top.square() / 2
    return torch.where(top > 0, torch.where(top > 0, near, 1.0).log(), tail)


def bits_per_dimension(nats: Tensor) -> Tensor:
    """The mean over an image's values, (B, C, ...) to (B,), in bits."""
    return nats.flatten(1).mean(dim=1) / math.log(2)


def _half_bin(denoiser: Denoiser, image: Tensor) -> Tensor | float:
    """One number for all channels, or one for each, to go with (B, C, ...) images."""
    if len(denoiser.half_bin) == 1:
        return denoiser.half_bin[0]
    return torch.tensor(denoiser.half_bin, dtype=image.dtype, device=image.device).view(-1, *[1] * (image.ndim - 2))


def _like(x: Tensor, image: Tensor) -> Tensor:
    """One number per image, or one per value, to go with (B, C, ...) images."""
    return (x if x.ndim == image.ndim else x.view(-1, *[1] * (image.ndim - 1))).to(image)
