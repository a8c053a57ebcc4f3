"""Which times are visited: against numpy's and torch's own constructions, for every number of steps."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm_hf.diffusion.choices import NOISE_SCHEDULES, TIMESTEP_SPACINGS
from ddpm_hf.diffusion.noise_schedules import make_betas
from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.schedulers.timestep_spacing import angle_timesteps, custom_timesteps, inference_timesteps


@pytest.mark.parametrize("spacing", [spacing for spacing in TIMESTEP_SPACINGS if spacing != "angle"])
@pytest.mark.parametrize("total", [1, 7, 100, 1000])
def test_every_grid_descends_within_the_training_steps(spacing: str, total: int) -> None:
    for steps in range(1, total + 1):
        grid = inference_timesteps(spacing, steps, total)
        assert all(a > b for a, b in pairwise(grid))
        assert grid[0] < total
        assert grid[-1] >= 0
        if spacing != "quadratic":
            assert len(grid) == steps
        if spacing in ("linspace", "trailing"):
            assert grid[0] == total - 1
        if spacing in ("linspace", "leading") and steps > 1:
            assert grid[-1] == 0


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_all_steps_are_the_training_steps(spacing: str) -> None:
    assert inference_timesteps(spacing, 1000, 1000) == list(range(999, -1, -1))


def test_quadratic_is_song_et_al() -> None:
    """Squares of an even grid up to sqrt(0.8 T), in float32, rounded. (A time is visited once.)"""
    for steps in range(2, 1001):
        reference = torch.linspace(0, math.sqrt(800), steps).pow(2).round().long().tolist()
        assert inference_timesteps("quadratic", steps, 1000)[::-1] == sorted(set(reference))
    assert inference_timesteps("quadratic", 10, 1000)[::-1] == [0, 10, 40, 89, 158, 247, 356, 484, 632, 800]
    assert len(inference_timesteps("quadratic", 100, 1000)) == 97
    assert inference_timesteps("quadratic", 1, 1000) == [800]


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
def test_angles_are_even(schedule: str) -> None:
    """To half a time, and they end one step above clean data."""
    diffusion = GaussianDiffusion(make_betas(schedule, 1000, 0.0001, 0.02))
    for steps in (1, 5, 20, 1000):
        grid = angle_timesteps(steps, diffusion)
        assert grid[0] == 999
        assert all(a > b for a, b in pairwise([*grid, -1]))
        wanted = np.linspace(diffusion.angle(999), 0, steps + 1)[:-1]
        times = [diffusion.time_at(float(angle)) for angle in wanted]
        assert grid == sorted({max(round(time), 0) for time in times}, reverse=True)
    with pytest.raises(ValueError, match="num_inference_steps=1001 cannot be taken of 1000 training steps"):
        angle_timesteps(1001, diffusion)


def test_the_angles_of_the_cosine_and_of_the_linear_schedule() -> None:
    cosine, linear = (
        GaussianDiffusion(make_betas(name, 1000, 0.0001, 0.02)) for name in ("squaredcos_cap_v2", "linear")
    )
    trailing = inference_timesteps("trailing", 5, 1000)
    assert np.abs(np.subtract(angle_timesteps(5, cosine), trailing)).max() <= 6
    assert angle_timesteps(5, linear) == [999, 476, 319, 200, 95]


def test_custom_timesteps() -> None:
    assert custom_timesteps(np.array([9, 4, 0]), 10) == [9, 4, 0]  # type: ignore[arg-type]
    for bad, message in [
        ([], "timesteps is empty"),
        ([1, 5], "timesteps must descend, but 5 follows 1"),
        ([5, 5], "timesteps must descend, but 5 follows 5"),
        ([10, 3], r"timesteps go from 10 to 3, outside 9 .. 0"),
        ([5, -2], r"timesteps go from 5 to -2, outside 9 .. 0"),
        ([5.0, 2.0], r"an entry of timesteps=5.0 is not one integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            custom_timesteps(bad, 10)  # type: ignore[arg-type]


def test_bad_counts() -> None:
    for steps in (0, -3, 1001):
        with pytest.raises(ValueError, match=rf"num_inference_steps={steps} cannot be taken of 1000 training steps"):
            inference_timesteps("leading", steps, 1000)
    with pytest.raises(
        ValueError, match=r"timestep_spacing='even' is not known; use one of leading, linspace, trailing"
    ):
        inference_timesteps("even", 10, 1000)
    with pytest.raises(ValueError, match=r"1000 leading steps with steps_offset=1 start at 1000"):
        inference_timesteps("leading", 1000, 1000, steps_offset=1)
