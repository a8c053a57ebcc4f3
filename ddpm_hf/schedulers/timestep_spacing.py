"""Which of the T training times a sampler visits."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm_hf.diffusion.choices import TIMESTEP_SPACINGS
from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.settings import as_ints, shown


def inference_timesteps(
    spacing: str, num_inference_steps: int, num_train_timesteps: int, steps_offset: int = 0
) -> list[int]:
    """The times that a sampler visits, from the noisiest to the cleanest.

    * `leading`, `linspace`, `trailing`: Lin et al. 2023, table 2. `leading` adds `steps_offset` to each time.
    * `quadratic`: the squares of an even grid up to sqrt(0.8 T) (Song et al. 2021, appendix D.2), rounded. Squares that
      round to the same time are visited once, so S = 100 of T = 1000 gives 97 steps.

    A single step starts where the noise is, at the top of the grid.

    Raises:
        ValueError: for an unknown spacing, S outside 1 .. T, or times outside 0 .. T-1.
    """
    steps, total = num_inference_steps, num_train_timesteps
    times: npt.NDArray[Any]
    _check_steps(steps, total)
    if spacing == "leading":
        times = np.arange(steps)[::-1] * (total // steps) + steps_offset
    elif spacing == "linspace":
        times = np.linspace(0, total - 1, steps)[::-1] if steps > 1 else np.array([total - 1])
    elif spacing == "trailing":
        times = np.round(np.arange(total, 0, -total / steps))[:steps] - 1  # rounding can make arange one too long
    elif spacing == "quadratic":
        top = min(0.8 * total, total - 1) ** 0.5
        # In float32, as the reference implementation's: it decides which way ties are rounded.
        roots = torch.linspace(0, top, steps) if steps > 1 else torch.tensor([top])
        times = roots.flip(0).square().numpy()
    else:
        raise ValueError(f"timestep_spacing={shown(spacing)} is not known; use one of {', '.join(TIMESTEP_SPACINGS)}.")
    grid = [int(t) for t in dict.fromkeys(np.round(times))]
    if grid[0] >= total:
        raise ValueError(
            f"{steps} {spacing} steps with steps_offset={steps_offset} start at {grid[0]}, but the last of {total} "
            f"training steps is {total - 1}; use fewer steps or a smaller steps_offset."
        )
    return grid


def angle_timesteps(num_inference_steps: int, diffusion: GaussianDiffusion) -> list[int]:
    """Times at even distances in the angle between signal and noise, from the last time down to clean data, excluded.

    On the cosine schedule they are those of `trailing`. On the linear one, where `trailing` steps far at the end, they
    lie closer together there. Times that are equal once they are rounded are visited once.

    Raises:
        ValueError: for S outside 1 .. T.
    """
    steps, total = num_inference_steps, diffusion.num_train_timesteps
    _check_steps(steps, total)
    top = diffusion.angle(total - 1)
    times = (round(diffusion.time_at(top * (steps - i) / steps)) for i in range(steps))
    return list(dict.fromkeys(max(t, 0) for t in times))


def _check_steps(steps: int, total: int) -> None:
    if not 1 <= steps <= total:
        raise ValueError(f"num_inference_steps={steps} cannot be taken of {total} training steps; use 1 .. {total}.")


def custom_timesteps(timesteps: Sequence[int], num_train_timesteps: int) -> list[int]:
    """A user's own times, checked: integers, strictly descending, within 0 .. T-1; a ValueError says what is not so."""
    grid = as_ints("timesteps", timesteps)
    if not grid:
        raise ValueError("timesteps is empty; give at least one.")
    for before, after in pairwise(grid):
        if after >= before:
            raise ValueError(f"timesteps must descend, but {after} follows {before}; sort them, without repeats.")
    if grid[0] >= num_train_timesteps or grid[-1] < 0:
        raise ValueError(f"timesteps go from {grid[0]} to {grid[-1]}, outside {num_train_timesteps - 1} .. 0.")
    return grid
