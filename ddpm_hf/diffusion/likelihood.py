"""How many bits per dimension a model needs for images: the variational bound, a quick estimate of it, and the ODE.

All that is random about an image follows from (seed, its index), so that neither the batch size nor the number of
processes changes it; and all but the network is computed in float64 on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.variational import bound_term, prior_term

METHODS: Final = ("bound", "estimate", "ode")


@torch.no_grad()
def bound_terms(
    denoiser: Denoiser, x_0: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None = None
) -> Tensor:
    """Every term of the bound, each with one noise of its own.

    Args:
        denoiser: with a network that takes and gives float64.
        x_0: float64 (B, C, H, W) on the levels of the denoiser's bins in [-1, 1].
        streams: one for each image.
        labels: int64 (B,) or None.

    Returns:
        float64 (B, T + 1) in bits/dim: L_0 .. L_{T-1} by the time that the step leaves, and L_T.
    """
    times = (torch.full((len(x_0),), t) for t in range(denoiser.diffusion.num_train_timesteps))
    terms = [_term(denoiser, x_0, t, streams, labels) for t in times]
    return torch.stack([*terms, prior_term(denoiser.diffusion, x_0)], dim=1)


@torch.no_grad()
def bound_estimate(
    denoiser: Denoiser,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    timesteps_per_image: int = 10,
) -> Tensor:
    """An unbiased estimate of the sum of `bound_terms`, float64 (B,): L_0 and L_T, and K terms in between.

    The terms fall about as 1 / t (Nichol & Dhariwal 2021, figure 2), so the times are drawn with p(t) = 1 / (t H) on
    1 .. T-1, one in each K-th part of the probability, and each term counts 1 / (K p(t)).
    """
    steps = denoiser.diffusion.num_train_timesteps
    total = prior_term(denoiser.diffusion, x_0)
    total += _term(denoiser, x_0, torch.zeros(len(x_0), dtype=torch.int64), streams, labels)
    share = 1 / torch.arange(1, steps, dtype=torch.float64)
    share /= share.sum()
    for k in range(timesteps_per_image if steps > 1 else 0):
        position = torch.tensor([(k + stream.random()) / timesteps_per_image for stream in streams], dtype=share.dtype)
        drawn = torch.searchsorted(share.cumsum(0)[:-1], position, right=True)
        total += _term(denoiser, x_0, 1 + drawn, streams, labels) / (timesteps_per_image * share[drawn])
    return total


def ode_nats(
    denoiser: Denoiser,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    num_steps: int = 100,
) -> Tensor:
    """-log p(x_0) of the probability-flow ODE (Song et al. 2021, "Score-based", section 4.3), float64 (B,).

    With x = cos(phi) x_0 + sin(phi) noise the ODE is dx/dphi = v(x, phi) (Salimans & Ho 2022, appendix D), from clean
    data at phi = 0 (where v, the expected noise, is 0) to the model's last time, whose density is N(0, I). The log
    density changes by minus the divergence of v, which is estimated with one random sign per value (Hutchinson).

    Args:
        denoiser: with a network that takes and gives float64.
        x_0: float64 (B, C, H, W), dequantised.
        streams: one for each image.
        labels: int64 (B,) or None.
        num_steps: steps of Heun's method, on an even grid of the model's own times.
    """
    denoiser = denoiser.without_restriction()
    signs = 2.0 * (drawn(streams, x_0, np.random.Generator.random) < 0.5) - 1
    x, divergence_so_far, phi = x_0, torch.zeros(len(x_0), dtype=torch.float64), 0.0
    v, divergence = torch.zeros_like(x_0), torch.zeros(len(x_0), dtype=torch.float64)
    last = denoiser.diffusion.num_train_timesteps - 1
    times = np.unique(np.linspace(last, 0, num_steps).round().astype(int)).tolist()
    for t in times:
        step, phi = _angle(denoiser, t) - phi, _angle(denoiser, t)
        ahead, divergence_ahead = _velocity(denoiser, x + step * v, t, labels, signs)
        x = x + step / 2 * (v + ahead)
        divergence_so_far = divergence_so_far + step / 2 * (divergence + divergence_ahead)
        if t != times[-1]:
            v, divergence = _velocity(denoiser, x, t, labels, signs)
    prior = (x.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1) / 2
    return prior - divergence_so_far


def _angle(denoiser: Denoiser, t: int) -> float:
    alpha_bar = float(denoiser.diffusion.alpha_bar(t))
    return math.atan2(math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar))


def _velocity(denoiser: Denoiser, x: Tensor, t: int, labels: Tensor | None, signs: Tensor) -> tuple[Tensor, Tensor]:
    """v at x and the estimate of its divergence, (B, ...) and (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x_0, noise, _ = denoiser(x, torch.full((len(x),), t), labels)
        phi = _angle(denoiser, t)
        v = math.cos(phi) * noise - math.sin(phi) * x_0
        (gradient,) = torch.autograd.grad((v * signs).sum(), x)
    return v.detach(), (gradient * signs).flatten(1).sum(dim=1)


def _term(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None
) -> Tensor:
    x_t = denoiser.diffusion.q_sample(x_0, t, drawn(streams, x_0, np.random.Generator.standard_normal))
    return bound_term(denoiser, denoiser.output(x_t, t, labels), x_0, x_t, t)


def drawn(streams: Sequence[np.random.Generator], like: Tensor, draw: Callable[..., Any]) -> Tensor:
    """One draw of each image's stream, float64 of the images' shape."""
    return torch.from_numpy(np.stack([draw(stream, tuple(like.shape[1:])) for stream in streams]))
