r"""The probability-flow ODE (Song et al. 2021, "Score-based", section 4.3), and the likelihood of images under it.

With :math:`x = \cos\varphi\, x_0 + \sin\varphi\, n`, so :math:`\cos^2\varphi = \bar\alpha`, the ODE is
:math:`dx / d\varphi = v(x, \varphi)` (Salimans & Ho 2022, appendix D). It goes from clean data at
:math:`\varphi = 0`, where v, the expected noise, is 0, to the model's last time, whose density is N(0, I). On the way
the log density changes by minus the divergence of v, which is estimated with one random sign per value (Hutchinson).

All but the network is computed in float64 on the CPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.likelihood import drawn


class Nats(NamedTuple):
    """What the ODE says of images.

    Attributes:
        values: -log p(x_0), float64 (B,).
        evaluations: how often the network was asked, each time with a gradient.
    """

    values: Tensor
    evaluations: int


def nats_on_grid(
    denoiser: Denoiser,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    num_steps: int = 100,
) -> Nats:
    """-log p(x_0) by Heun's method on an even grid of the model's own times: a known cost, and an unknown error.

    Args:
        denoiser: with a network that takes and gives float64.
        x_0: float64 (B, C, H, W), dequantised.
        streams: one for each image.
        labels: int64 (B,) or None.
        num_steps: steps of the grid; a model with fewer timesteps has one for each.
    """
    flow = _Flow.of(denoiser, x_0, streams, labels)
    last = denoiser.diffusion.num_train_timesteps - 1
    state = _clean(x_0)
    for t in np.unique(np.linspace(last, 0, num_steps).round().astype(int)).tolist():
        state = flow.heun(state, t)
    return flow.nats(state)


def nats_within(
    denoiser: Denoiser,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Nats:
    r"""-log p(x_0) by SciPy's RK45, whose steps are as short as the tolerances ask: a known error, at an unknown cost.

    The ODE is solved in :math:`u = \operatorname{arsinh}(\tan\varphi)`, the logarithm of the noise-to-signal ratio but
    for a bend at small ones, with the right-hand side :math:`\cos\varphi\, v`. Near the data u is the angle, in which
    the flow of smooth data begins as a straight line; near noise it is the logarithm, as the v of an `epsilon`
    network, :math:`(n - \sin\varphi\, x) / \cos\varphi`, divides its errors by the signal that is left, and the factor
    takes that away. docs/objectives.md has what other variables cost. Where u is infinite, at a last time without
    signal, and before the first timestep, of which the network knows nothing, a step of Heun's method takes its place.

    Between two timesteps the network is asked at a fraction of one (`GaussianDiffusion.time_at`). The images of a batch
    share their steps, so a figure depends on the batch by as much as the tolerances let it. SciPy holds the root mean
    square over a batch, of all values and of the divergence per dimension, to atol + rtol |value| in each step.

    Args:
        denoiser: with a network that takes float64 and times in between, and gives float64.
        x_0: float64 (B, C, H, W), dequantised.
        streams: one for each image.
        labels: int64 (B,) or None.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.

    Returns:
        Values are nan where the network's output is not finite.
    """
    flow = _Flow.of(denoiser, x_0, streams, labels)
    diffusion = denoiser.diffusion
    final = diffusion.num_train_timesteps - 1
    last = final if float(diffusion.alpha_bar(final)) > 0 else final - 1
    state = flow.heun(_clean(x_0), 0)
    if last > 0:
        state = flow.solved(state, last, rtol=rtol, atol=atol)
    if last < final and final > 0:
        state = flow.heun(state, final)
    return flow.nats(state)


class _State(NamedTuple):
    """A point of the way.

    Args:
        x: (B, ...).
        divergence: its integral so far, (B,).
        t: the timestep.
        angle: its angle.
        slope: v and its divergence here; None where they have not been asked for.
    """

    x: Tensor
    divergence: Tensor
    t: int
    angle: float
    slope: tuple[Tensor, Tensor] | None = None


def _clean(x_0: Tensor) -> _State:
    """The beginning of the way."""
    nothing = torch.zeros(len(x_0), dtype=torch.float64)
    return _State(x_0, nothing, -1, 0.0, (torch.zeros_like(x_0), nothing))


@dataclass
class _Flow:
    """The right-hand side, for the images of a batch.

    Args:
        denoiser: without restriction.
        signs: +-1, (B, ...).
        labels: (B,) or None.
    """

    denoiser: Denoiser
    signs: Tensor
    labels: Tensor | None
    evaluations: int = 0

    @classmethod
    def of(cls, denoiser: Denoiser, x_0: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None) -> Self:
        signs = 2.0 * (drawn(streams, x_0, np.random.Generator.random) < 0.5) - 1
        return cls(denoiser.without_restriction(), signs, labels)

    def slope(self, x: Tensor, t: int | float, angle: float) -> tuple[Tensor, Tensor]:
        """v at x and the estimate of its divergence, (B, ...) and (B,)."""
        self.evaluations += 1
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x_0, noise, _ = self.denoiser(x, torch.full((len(x),), t), self.labels)
            v = math.cos(angle) * noise - math.sin(angle) * x_0
            (gradient,) = torch.autograd.grad((v * self.signs).sum(), x)
        return v.detach(), (gradient * self.signs).flatten(1).sum(dim=1)

    def heun(self, state: _State, t: int) -> _State:
        """A step of Heun's method in the angle, to a timestep."""
        angle = self.denoiser.diffusion.angle(t)
        step = angle - state.angle
        v, divergence = state.slope or self.slope(state.x, state.t, state.angle)
        v_ahead, divergence_ahead = self.slope(state.x + step * v, t, angle)
        x = state.x + step / 2 * (v + v_ahead)
        return _State(x, state.divergence + step / 2 * (divergence + divergence_ahead), t, angle)

    def solved(self, state: _State, t: int, **tolerances: float) -> _State:
        """The way to a timestep by RK45; nan for images at which the network's output was not finite."""
        from scipy.integrate import solve_ivp  # slow to import, and not needed by most

        diffusion = self.denoiser.diffusion
        shape, size, values = state.x.shape, state.x.numel(), state.x[0].numel()
        # One image without an answer would leave the others none: no step is short enough for it.
        spoilt = ~_finite(state.x, state.divergence)

        def rate(u: float, y: np.ndarray) -> np.ndarray:
            angle = math.atan(math.sinh(u))
            x = torch.from_numpy(y[:size]).reshape(shape)
            v, divergence = self.slope(x, diffusion.time_at(angle), angle)
            spoilt.logical_or_(~_finite(v, divergence))
            v[spoilt], divergence[spoilt] = 0, 0
            return math.cos(angle) * np.concatenate([v.flatten(), divergence / values])

        way = [math.asinh(math.tan(angle)) for angle in (state.angle, diffusion.angle(t))]
        start = np.nan_to_num(np.concatenate([state.x.flatten(), state.divergence / values]), posinf=0, neginf=0)
        found = solve_ivp(rate, way, start, t_eval=way[1:], **tolerances)
        end = torch.from_numpy(found.y[:, -1]) if found.success else torch.full((len(start),), torch.nan)
        x, divergence = end[:size].reshape(shape).clone(), values * end[size:]
        divergence[spoilt] = torch.nan
        return _State(x, divergence, t, diffusion.angle(t))

    def nats(self, state: _State) -> Nats:
        prior = (state.x.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1) / 2
        return Nats(prior - state.divergence, self.evaluations)


def _finite(x: Tensor, divergence: Tensor) -> Tensor:
    """Which images have finite numbers, bool (B,)."""
    return x.flatten(1).isfinite().all(dim=1) & divergence.isfinite()
