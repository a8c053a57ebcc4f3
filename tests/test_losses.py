"""Objectives: the loss in float64 by hand, and the weights by what they promise."""

import pytest
import torch

from ddpm_hf.diffusion import GaussianDiffusion
from ddpm_hf.losses import min_snr_weight, training_loss
from ddpm_hf.noise_schedules import make_betas, rescale_betas_zero_snr

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("prediction_type", [*PREDICTION_TYPES, "posterior_mean"])
def test_loss_is_the_mean_squared_error_of_each_image(prediction_type: str, rng: torch.Generator) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    x_0, noise, output = (torch.randn(4, 3, 5, 5, generator=rng) for _ in range(3))
    t = torch.tensor([0, 10, 50, 99])
    loss = training_loss(diffusion, output, x_0, noise, t, prediction_type)
    target = diffusion.target(x_0.double(), noise.double(), t, prediction_type)
    by_hand = torch.stack([((output[i].double() - target[i]) ** 2).sum() / 75 for i in range(4)])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_loss_is_float32_whatever_the_networks_precision(rng: torch.Generator) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    x_0, noise, output = (torch.randn(4, 3, 5, 5, generator=rng).bfloat16() for _ in range(3))
    t = torch.tensor([0, 10, 50, 99])
    for prediction_type in PREDICTION_TYPES:
        got = training_loss(diffusion, output, x_0, noise, t, prediction_type)
        exact = training_loss(diffusion, output.float(), x_0.float(), noise.float(), t, prediction_type)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weighs_the_error_in_x_0(prediction_type: str, rng: torch.Generator) -> None:
    """However the network says it, an error in x_0 costs min(SNR, gamma) times its square."""
    diffusion = GaussianDiffusion(make_betas("linear", 1000))
    t = torch.tensor([3, 200, 500, 900])
    x_0, noise, wrong_x_0 = (torch.randn(4, 3, 5, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    x_t = diffusion.q_sample(x_0, t, noise)
    wrong_output = diffusion.target(wrong_x_0, diffusion.noise_of(wrong_x_0, x_t, t), t, prediction_type)
    loss = training_loss(diffusion, wrong_output, x_0, noise, t, prediction_type, "min_snr", min_snr_gamma=5.0)
    snr = diffusion.alphas_cumprod[t] / (1 - diffusion.alphas_cumprod[t])
    expected = snr.clamp(max=5.0) * (wrong_x_0 - x_0).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


def test_min_snr_is_finite_at_zero_snr() -> None:
    diffusion = GaussianDiffusion(rescale_betas_zero_snr(make_betas("linear", 100)))
    for prediction_type in PREDICTION_TYPES:
        assert min_snr_weight(diffusion.snr(torch.arange(100)), prediction_type).isfinite().all()


def test_bad_input() -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    x, t = torch.zeros(1, 1, 2, 2), torch.tensor([1])
    with pytest.raises(ValueError, match=r"weighting='p2' is not known; use one of none, min_snr"):
        training_loss(diffusion, x, x, x, t, weighting="p2")
    with pytest.raises(
        ValueError, match=r"min_snr weighting is defined for epsilon, sample and v_prediction, not 'post"
    ):
        training_loss(diffusion, x, x, x, t, "posterior_mean", "min_snr")
