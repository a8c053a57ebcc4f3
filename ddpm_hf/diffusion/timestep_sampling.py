"""Which timesteps a step trains at, and what each counts so that the expected loss stays that of uniform ones."""

from pkgutil import resolve_name
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm_hf.diffusion.choices import TIMESTEP_SAMPLERS

HISTORY = 10
"""Losses remembered of each timestep (Nichol & Dhariwal 2021, section 3.3)."""

UNIFORM_SHARE = 0.001
"""Probability that is shared evenly by all timesteps, so that none is forgotten, as in Nichol & Dhariwal's code."""

Array = npt.NDArray[Any]


class TimestepSampler:
    """Draws a timestep on 0..T-1 for each sample of a global batch: each timestep alike (Ho et al. 2020, algorithm 1).

    Args:
        num_train_timesteps: T.
        batch_size: B, of the global batch.

    Attributes:
        learns: Whether the draws follow from the losses of the steps before.
    """

    learns = False

    def __init__(self, num_train_timesteps: int, batch_size: int = 1) -> None:
        self.num_train_timesteps = num_train_timesteps
        self.batch_size = batch_size

    def draw(self, stream: np.random.Generator, samples: Array) -> Array:
        """The timesteps of some samples, int64 of the shape of ``samples``, their places in the global batch.

        Of a sampler that learns this is what :meth:`to_timesteps` makes them from: it may be drawn a step ahead.
        """
        return stream.integers(self.num_train_timesteps, size=samples.shape)

    def to_timesteps(self, drawn: Tensor) -> Tensor:
        """The timesteps of what was drawn, int64 of its shape, when the losses of all steps before are known."""
        return drawn

    def weights(self, t: Tensor) -> Tensor:
        """What the losses at ``t`` count: 1 / (T p(t)), float32 of t's shape, on the CPU."""
        return torch.ones(t.shape)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses of a whole global batch, float32 ``(B,)`` in its order; both may be on a device."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the draws follow from besides (seed, step, sample)."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`, bit for bit."""


class StratifiedTimesteps(TimestepSampler):
    """Each timestep alike, but spread evenly over the batch: sample i of B has its own B-th part of the times.

    t_i = floor(T (i + u_i) / B) with u_i uniform on [0, 1), so the mean of a batch has less variance than with
    independent times (the idea of Kingma et al. 2021, appendix I.1, with a shift of its own for each sample). Which
    image is sample i is random, so that over the steps each image sees all times.

    """

    def draw(self, stream: np.random.Generator, samples: Array) -> Array:
        """One time in the part of each sample."""
        # Draws are made for whole blocks of samples, and the last block may go beyond the batch.
        position = (samples % self.batch_size + stream.random(samples.shape)) / self.batch_size
        drawn: Array = np.floor(position * self.num_train_timesteps).astype(np.int64)
        return drawn


class ImportanceTimesteps(TimestepSampler):
    """p(t) in proportion to the root mean square of the last losses at t (Nichol & Dhariwal 2021, eq. 18).

    Uniform until each timestep has `HISTORY` losses. Losses come in the order of the global batch and all processes
    see all of them, so the probabilities are the same everywhere.
    """

    learns = True

    def __init__(self, num_train_timesteps: int, batch_size: int = 1) -> None:
        super().__init__(num_train_timesteps, batch_size)
        self._losses = np.zeros((num_train_timesteps, HISTORY))
        self._counts = np.zeros(num_train_timesteps, dtype=np.int64)  # seen so far; the next one's place is its rest

    def probabilities(self) -> Array:
        """p(t), float64 ``(T,)``."""
        size = self.num_train_timesteps
        root: Array = np.sqrt(np.square(self._losses).mean(axis=1))
        if self._counts.min() < HISTORY or root.sum() == 0:
            return np.full(size, 1 / size)
        by_losses: Array = (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / size
        return by_losses

    def draw(self, stream: np.random.Generator, samples: Array) -> Array:
        """Uniform on [0, 1)."""
        return stream.random(samples.shape)

    def to_timesteps(self, drawn: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        cumulated = np.cumsum(self.probabilities())
        return torch.from_numpy(np.searchsorted(cumulated / cumulated[-1], drawn.numpy(), side="right"))

    def weights(self, t: Tensor) -> Tensor:
        """1 / (T p(t))."""
        weights = 1 / (self.num_train_timesteps * self.probabilities())
        return torch.from_numpy(weights).float()[t.cpu()]

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Each loss takes the place of the oldest one at its timestep."""
        # Both in one copy, for a device is waited for each time; float32 has whole numbers up to 2^24.
        for time, loss in torch.stack([t.float(), losses.float()]).T.tolist():
            time = int(time)
            self._losses[time, self._counts[time] % HISTORY] = loss
            self._counts[time] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The last losses of each timestep, and how many there have been."""
        return {"losses": torch.from_numpy(self._losses.copy()), "counts": torch.from_numpy(self._counts.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bit for bit."""
        self._losses, self._counts = state["losses"].numpy().copy(), state["counts"].numpy().copy()


def timestep_sampler(name: str, num_train_timesteps: int, batch_size: int) -> TimestepSampler:
    """The one of `choices.TIMESTEP_SAMPLERS` with this name."""
    sampler: TimestepSampler = resolve_name(TIMESTEP_SAMPLERS[name])(num_train_timesteps, batch_size)
    return sampler
