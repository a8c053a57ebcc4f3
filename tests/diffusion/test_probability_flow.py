"""The likelihood of the probability-flow ODE: closed forms on Gaussian data, on a fixed grid and within tolerances."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm_hf.diffusion.choices import NOISE_SCHEDULES, PREDICTION_TYPES
from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.noise_schedules import make_betas, rescale_betas_zero_snr
from ddpm_hf.diffusion.probability_flow import nats_on_grid, nats_within
from ddpm_hf.diffusion.process import GaussianDiffusion
from tests.diffusion.gaussian import MEAN, SIGMA, gaussian_model, streams

COSINE = GaussianDiffusion(make_betas("squaredcos_cap_v2", 1000))


def data_and_nats() -> tuple[Tensor, Tensor]:
    x_0 = MEAN + SIGMA * torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x_0, torch.from_numpy(-stats.norm(MEAN, SIGMA).logpdf(x_0)).flatten(1).sum(dim=1)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_grid_agrees_with_the_closed_form(prediction_type: str) -> None:
    """The flow is linear with a diagonal matrix here, of which one random sign per value gives the exact trace."""
    x_0, exact = data_and_nats()
    model = gaussian_model(COSINE, prediction_type)
    found = [nats_on_grid(model, x_0, streams(10), num_steps=n) for n in (50, 100, 200)]
    errors = [(one.values - exact).abs().max() / 16 for one in found]
    assert [one.evaluations for one in found] == [99, 199, 399]
    assert errors[-1] < 1e-4
    assert errors[1] < errors[0] / 3  # of second order
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_error_follows_the_tolerance(prediction_type: str) -> None:
    x_0, exact = data_and_nats()
    model = gaussian_model(COSINE, prediction_type)
    tolerances = [1e-3, 1e-4, 1e-5, 1e-6]
    found = [nats_within(model, x_0, streams(10), rtol=tolerance, atol=tolerance) for tolerance in tolerances]
    errors = [float((one.values - exact).abs().max()) / 16 for one in found]
    for tolerance, error in zip(tolerances, errors):
        # The first step, Heun's, and the last density leave 3e-6 of their own.
        assert error < 2 * tolerance + 3e-6
    assert errors[-1] < errors[0] / 100
    evaluations = [one.evaluations for one in found]
    assert evaluations == sorted(set(evaluations))
    assert evaluations[-1] < 150


def test_another_batch_moves_a_figure_within_the_tolerance() -> None:
    x_0, _ = data_and_nats()
    model = gaussian_model(COSINE)
    together = nats_within(model, x_0, streams(10), rtol=1e-4, atol=1e-4).values
    alone = nats_within(model, x_0[:1], streams(1), rtol=1e-4, atol=1e-4).values
    assert 0 < float((alone - together[:1]).abs()) / 16 < 2e-4


def test_the_grid_goes_to_what_the_tolerances_find() -> None:
    """Both begin with the same step away from the data, so that nothing but the grid lies between them."""
    x_0, _ = data_and_nats()
    model = gaussian_model(COSINE)
    within = nats_within(model, x_0, streams(10), rtol=1e-8, atol=1e-8).values
    grids = [nats_on_grid(model, x_0, streams(10), num_steps=n).values for n in (25, 50, 100, 200)]
    away = [float((grid - within).abs().max()) / 16 for grid in grids]
    assert all(finer < coarser / 3 for coarser, finer in pairwise(away)), away
    assert away[-1] < 1e-4


@pytest.mark.parametrize("steps", [1000, 1])
def test_both_go_to_the_end_of_a_schedule_without_signal(steps: int) -> None:
    betas = torch.ones(1) if steps == 1 else rescale_betas_zero_snr(make_betas("squaredcos_cap_v2", steps))
    model = gaussian_model(GaussianDiffusion(betas), "v_prediction")
    x_0 = torch.full((1, 1, 2, 2), 0.2, dtype=torch.float64)
    exact = float(-stats.norm(MEAN, SIGMA).logpdf(0.2)) * 4
    grid, within = nats_on_grid(model, x_0, streams(1), num_steps=200), nats_within(model, x_0, streams(1))
    if steps == 1:
        assert grid == within
    else:
        assert float(grid.values) == pytest.approx(exact, abs=1e-3)
        assert float(within.values) == pytest.approx(exact, abs=1e-4)


def test_an_image_without_an_answer_spoils_no_other() -> None:
    x_0, exact = data_and_nats()
    model = gaussian_model(COSINE)

    def network(x_t: Tensor, t: int | Tensor, labels: Tensor | None) -> Tensor:
        output = model.output(x_t, t, labels)
        return output * torch.where(torch.arange(len(x_t)) == 3, torch.nan, 1).view(-1, 1, 1, 1)

    found = nats_within(Denoiser(COSINE, network=network, variance_type="learned"), x_0, streams(10), None, 1e-4, 1e-4)
    others = torch.arange(10) != 3
    assert found.values[3].isnan()
    assert (found.values - exact)[others].abs().max() / 16 < 1e-3


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
def test_times_between_timesteps(schedule: str) -> None:
    diffusion = GaussianDiffusion(make_betas(schedule, 50))
    whole = torch.arange(-1, 50)
    torch.testing.assert_close(diffusion.alpha_bar(whole.double()), diffusion.alpha_bar(whole), rtol=1e-10, atol=1e-30)
    angles = [diffusion.angle(t) for t in whole.tolist()]
    assert np.allclose(np.cos(angles) ** 2, diffusion.alpha_bar(whole))
    assert [diffusion.time_at(angle) for angle in angles] == pytest.approx(whole.tolist(), abs=1e-9)
    for t in (-0.5, 0.25, 48.9):
        between = float(diffusion.alpha_bar(torch.tensor(t, dtype=torch.float64)))
        assert diffusion.time_at(math.acos(math.sqrt(between))) == pytest.approx(t, abs=1e-6)
        assert diffusion.alpha_bar(math.floor(t)) > between > diffusion.alpha_bar(math.ceil(t))
    with pytest.raises(ValueError, match=r"timesteps .* are outside -1 \.\. 49"):
        diffusion.alpha_bar(torch.tensor(49.5))
