"""How many bits per dimension a model needs for images: the variational bound, a quick estimate of it, and the ODE.

All that is random about an image follows from (seed, its index), so that neither the batch size nor the number of
processes changes it; and all but the network is computed in float64 on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.diffusion.variational import bound_term, prior_term, split_variance

METHODS: Final = ("bound", "estimate", "ode")

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t float64 (B, C, H, W), t int64 (B,), labels int64 (B,) or None) -> float64 (B, C or 2C, H, W), on the CPU."""


@dataclass(frozen=True)
class Model:
    """A network with what its output means.

    Args:
        network: the network.
        diffusion: the process that it was trained on.
        prediction_type: one of `diffusion.PREDICTION_TYPES`.
        variance_type: one of `diffusion.VARIANCE_TYPES`, for the bound.
        clip_range: the bound clips the predicted x_0 to it, as samplers do; None leaves it.
    """

    network: Network
    diffusion: GaussianDiffusion
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    clip_range: float | None = None

    @classmethod
    def of(cls, pipe: Any) -> Self:
        """That of a pipeline, by its scheduler's config.

        Raises:
            ValueError: if the scheduler is none of ours.
        """
        unet, config = pipe.unet, pipe.scheduler.config
        if not isinstance(getattr(pipe.scheduler, "diffusion", None), GaussianDiffusion):
            raise ValueError(
                f"bits per dimension need the noise schedule of a DDPMScheduler or DDIMScheduler of ddpm_hf, and this "
                f"pipeline has a {type(pipe.scheduler).__name__}; give it one by from_config."
            )

        def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            labels = None if labels is None else labels.to(unet.device)
            output: Tensor = unet(x_t.to(unet.device, unet.dtype), t.to(unet.device), labels).sample
            return output.cpu().double()

        clip_range = config.clip_sample_range if config.clip_sample else None
        variance_type = config.get("variance_type", "fixed_small")
        return cls(network, pipe.scheduler.diffusion, config.prediction_type, variance_type, clip_range)


@torch.no_grad()
def bound_terms(
    model: Model, x_0: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None = None
) -> Tensor:
    """Every term of the bound, each with one noise of its own.

    Args:
        model: the model.
        x_0: float64 (B, C, H, W) on the 256 levels in [-1, 1].
        streams: one for each image.
        labels: int64 (B,) or None.

    Returns:
        float64 (B, T + 1) in bits/dim: L_0 .. L_{T-1} by the time that the step leaves, and L_T.
    """
    times = (torch.full((len(x_0),), t) for t in range(model.diffusion.num_train_timesteps))
    terms = [_term(model, x_0, t, streams, labels) for t in times]
    return torch.stack([*terms, prior_term(model.diffusion, x_0)], dim=1)


@torch.no_grad()
def bound_estimate(
    model: Model,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    timesteps_per_image: int = 10,
) -> Tensor:
    """An unbiased estimate of the sum of `bound_terms`, float64 (B,): L_0 and L_T, and K terms in between.

    The terms fall about as 1 / t (Nichol & Dhariwal 2021, figure 2), so the times are drawn with p(t) = 1 / (t H) on
    1 .. T-1, one in each K-th part of the probability, and each term counts 1 / (K p(t)).
    """
    steps = model.diffusion.num_train_timesteps
    total = prior_term(model.diffusion, x_0)
    total += _term(model, x_0, torch.zeros(len(x_0), dtype=torch.int64), streams, labels)
    share = 1 / torch.arange(1, steps, dtype=torch.float64)
    share /= share.sum()
    for k in range(timesteps_per_image if steps > 1 else 0):
        position = torch.tensor([(k + stream.random()) / timesteps_per_image for stream in streams], dtype=share.dtype)
        drawn = torch.searchsorted(share.cumsum(0)[:-1], position, right=True)
        total += _term(model, x_0, 1 + drawn, streams, labels) / (timesteps_per_image * share[drawn])
    return total


def ode_nats(
    model: Model,
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
        model: the model.
        x_0: float64 (B, C, H, W), dequantised.
        streams: one for each image.
        labels: int64 (B,) or None.
        num_steps: steps of Heun's method, on an even grid of the model's own times.
    """
    signs = 2.0 * (drawn(streams, x_0, np.random.Generator.random) < 0.5) - 1
    x, divergence_so_far, phi = x_0, torch.zeros(len(x_0), dtype=torch.float64), 0.0
    v, divergence = torch.zeros_like(x_0), torch.zeros(len(x_0), dtype=torch.float64)
    times = np.unique(np.linspace(model.diffusion.num_train_timesteps - 1, 0, num_steps).round().astype(int)).tolist()
    for t in times:
        step, phi = _angle(model, t) - phi, _angle(model, t)
        ahead, divergence_ahead = _velocity(model, x + step * v, t, labels, signs)
        x = x + step / 2 * (v + ahead)
        divergence_so_far = divergence_so_far + step / 2 * (divergence + divergence_ahead)
        if t != times[-1]:
            v, divergence = _velocity(model, x, t, labels, signs)
    prior = (x.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1) / 2
    return prior - divergence_so_far


def _angle(model: Model, t: int) -> float:
    alpha_bar = float(model.diffusion.alpha_bar(t))
    return math.atan2(math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar))


def _velocity(model: Model, x: Tensor, t: int, labels: Tensor | None, signs: Tensor) -> tuple[Tensor, Tensor]:
    """v at x and the estimate of its divergence, (B, ...) and (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        times = torch.full((len(x),), t)
        prediction, _ = split_variance(model.network(x, times, labels), x.shape[1])
        x_0, noise = model.diffusion.predict(prediction, x, times, model.prediction_type)
        phi = _angle(model, t)
        v = math.cos(phi) * noise - math.sin(phi) * x_0
        (gradient,) = torch.autograd.grad((v * signs).sum(), x)
    return v.detach(), (gradient * signs).flatten(1).sum(dim=1)


def _term(
    model: Model, x_0: Tensor, t: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None
) -> Tensor:
    x_t = model.diffusion.q_sample(x_0, t, drawn(streams, x_0, np.random.Generator.standard_normal))
    output = model.network(x_t, t, labels)
    return bound_term(
        model.diffusion, output, x_0, x_t, t, model.prediction_type, model.variance_type, model.clip_range
    )


def drawn(streams: Sequence[np.random.Generator], like: Tensor, draw: Callable[..., Any]) -> Tensor:
    """One draw of each image's stream, float64 of the images' shape."""
    return torch.from_numpy(np.stack([draw(stream, tuple(like.shape[1:])) for stream in streams]))
