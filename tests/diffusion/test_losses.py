"""Objectives: the loss in float64 by hand, and the weights by what they promise."""

import pytest
import torch

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.losses import Objective, min_snr_weight, p2_weight, training_loss
from ddpm_hf.diffusion.noise_schedules import make_betas, rescale_betas_zero_snr
from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.diffusion.variational import bound_term
from ddpm_hf.images import from_uint8

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("prediction_type", [*PREDICTION_TYPES, "posterior_mean"])
def test_loss_is_the_mean_squared_error_of_each_image(prediction_type: str, rng: torch.Generator) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    x_0, noise, output = (torch.randn(4, 3, 5, 5, generator=rng) for _ in range(3))
    t = torch.tensor([0, 10, 50, 99])
    loss = training_loss(Denoiser(diffusion, prediction_type), output, x_0, noise, t)
    target = diffusion.target(x_0.double(), noise.double(), t, prediction_type)
    by_hand = torch.stack([((output[i].double() - target[i]) ** 2).sum() / 75 for i in range(4)])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_loss_is_float32_whatever_the_networks_precision(rng: torch.Generator) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    x_0, noise, output = (torch.randn(4, 3, 5, 5, generator=rng).bfloat16() for _ in range(3))
    t = torch.tensor([0, 10, 50, 99])
    for prediction_type in PREDICTION_TYPES:
        got = training_loss(Denoiser(diffusion, prediction_type), output, x_0, noise, t)
        exact = training_loss(Denoiser(diffusion, prediction_type), output.float(), x_0.float(), noise.float(), t)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_weightings_weigh_the_error_in_x_0(prediction_type: str, weighting: str, rng: torch.Generator) -> None:
    """However the network says it, an error in x_0 costs its square times min(SNR, gamma), or SNR / (1 + SNR)^gamma."""
    diffusion = GaussianDiffusion(make_betas("linear", 1000))
    t = torch.tensor([3, 200, 500, 900])
    x_0, noise, wrong_x_0 = (torch.randn(4, 3, 5, 5, generator=rng, dtype=torch.float64) for _ in range(3))
    x_t = diffusion.q_sample(x_0, t, noise)
    wrong_output = diffusion.target(wrong_x_0, diffusion.noise_of(wrong_x_0, x_t, t), t, prediction_type)
    objective = Objective(weighting=weighting, min_snr_gamma=5.0, p2_gamma=0.7)
    loss = training_loss(Denoiser(diffusion, prediction_type), wrong_output, x_0, noise, t, objective)
    snr = diffusion.alphas_cumprod[t] / (1 - diffusion.alphas_cumprod[t])
    weight = snr.clamp(max=5.0) if weighting == "min_snr" else snr / (1 + snr) ** 0.7
    expected = weight * (wrong_x_0 - x_0).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


def test_weights_are_finite_at_zero_snr() -> None:
    diffusion = GaussianDiffusion(rescale_betas_zero_snr(make_betas("linear", 100)))
    for prediction_type in PREDICTION_TYPES:
        for weight in (min_snr_weight, p2_weight):
            assert weight(diffusion.snr(torch.arange(100)), prediction_type).isfinite().all()


def test_kl_is_the_bound_without_its_constant_term(rng: torch.Generator) -> None:
    """The mean over all timesteps of T times a term is the sum of the terms."""
    diffusion = GaussianDiffusion(make_betas("linear", 20, 1e-3, 0.3))
    t = torch.arange(20)
    image = from_uint8(torch.randint(256, (1, 2, 3, 3), generator=rng)).expand(20, -1, -1, -1)
    noise, output = (torch.randn(image.shape, generator=rng) for _ in range(2))
    x_t = diffusion.q_sample(image, t, noise)
    for variance_type in ("fixed_small", "fixed_large"):
        denoiser = Denoiser(diffusion, variance_type=variance_type)
        loss = training_loss(denoiser, output, image, noise, t, Objective("kl"))
        double = (x.double() for x in (output, image, x_t))
        terms = bound_term(denoiser, *double, t)
        assert loss.dtype == torch.float32
        assert float(loss.mean()) == pytest.approx(float(terms.sum()), rel=1e-4)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_hybrid_teaches_the_mean_by_the_simple_loss_and_the_variance_by_the_bound(
    variance_type: str, rng: torch.Generator
) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    t = torch.tensor([0, 1, 50, 99])
    x_0, noise, prediction, variance = (torch.randn(4, 2, 3, 3, generator=rng).clamp(-1, 1) for _ in range(4))

    def gradients(loss: str) -> tuple[torch.Tensor, torch.Tensor]:
        output = torch.cat([prediction, variance], dim=1).requires_grad_()
        kind = "fixed_small" if loss == "simple" else variance_type
        seen = output[:, :2] if loss == "simple" else output
        denoiser = Denoiser(diffusion, variance_type=kind)
        value = training_loss(denoiser, seen, x_0, noise, t, Objective(loss, vlb_weight=0.01))
        (gradient,) = torch.autograd.grad(value.sum(), output)
        return gradient[:, :2], gradient[:, 2:]

    (simple, _), (of_mean, of_variance), (hybrid_mean, hybrid_variance) = map(gradients, ("simple", "kl", "hybrid"))
    torch.testing.assert_close(hybrid_mean, simple)
    torch.testing.assert_close(hybrid_variance, 0.01 * of_variance)
    assert of_mean.abs().max() > 0
    assert of_variance.abs().max() > 0


def test_bad_input() -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 100))
    x, t = torch.zeros(1, 1, 2, 2), torch.tensor([1])
    with pytest.raises(ValueError, match=r"weighting='p3' is not known; use one of none, min_snr, p2"):
        training_loss(Denoiser(diffusion), x, x, x, t, Objective(weighting="p3"))
    with pytest.raises(ValueError, match="'learned_range' needs a network with twice the image's channels"):
        training_loss(Denoiser(diffusion, variance_type="learned_range"), x, x, x, t, Objective("kl"))
    with pytest.raises(
        ValueError, match=r"weighting='min_snr' is defined for epsilon, sample and v_prediction, not 'post"
    ):
        training_loss(Denoiser(diffusion, "posterior_mean"), x, x, x, t, Objective(weighting="min_snr"))
