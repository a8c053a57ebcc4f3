"""How many bits per dimension a model needs for images: the variational bound, and a quick estimate of it.

All that is random about an image follows from (seed, its index), so that neither the batch size nor the number of
processes changes it; and all but the network is computed in float64 on the CPU.
"""

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


def _term(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None
) -> Tensor:
    x_t = denoiser.diffusion.q_sample(x_0, t, drawn(streams, x_0, np.random.Generator.standard_normal))
    return bound_term(denoiser, denoiser.output(x_t, t, labels), x_0, x_t, t)


def drawn(streams: Sequence[np.random.Generator], like: Tensor, draw: Callable[..., Any]) -> Tensor:
    """One draw of each image's stream, float64 of the images' shape."""
    return torch.from_numpy(np.stack([draw(stream, tuple(like.shape[1:])) for stream in streams]))
