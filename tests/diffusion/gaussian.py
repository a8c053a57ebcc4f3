"""Gaussian data, for which a perfect network is a formula and every likelihood has a closed form."""

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.randomness import random_stream

MEAN, SIGMA = 0.1, 0.3


def gaussian_model(diffusion: GaussianDiffusion, prediction_type: str = "epsilon") -> Denoiser:
    """What a perfect network says of data from N(MEAN, SIGMA^2): Bayes' rule, with the true reverse variance."""

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha_bar = diffusion.alpha_bar(t).view(-1, 1, 1, 1)
        variance = SIGMA**2 * alpha_bar + 1 - alpha_bar
        x_0 = MEAN + SIGMA**2 * alpha_bar.sqrt() / variance * (x_t - alpha_bar.sqrt() * MEAN)
        posterior = diffusion.posterior(t, t - 1)
        uncertainty = posterior.c_0.view(-1, 1, 1, 1) ** 2 * SIGMA**2 * (1 - alpha_bar) / variance
        log_variance = (posterior.sigma.view(-1, 1, 1, 1) ** 2 + uncertainty).log()
        output = diffusion.target(x_0, diffusion.noise_of(x_0, x_t, t), t, prediction_type)
        return torch.cat([output, log_variance.expand_as(x_t)], dim=1)

    return Denoiser(diffusion, prediction_type, "learned", network=network)


def streams(number: int) -> list[np.random.Generator]:
    return [random_stream("test", 0, i) for i in range(number)]
