"""The closed forms of the process, against their definitions in float64."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ddpm_hf.diffusion.choices import NOISE_SCHEDULES, PREDICTION_TYPES
from ddpm_hf.diffusion.noise_schedules import make_betas, rescale_betas_zero_snr
from ddpm_hf.diffusion.process import GaussianDiffusion

SCHEDULES = pytest.mark.parametrize("schedule", NOISE_SCHEDULES)


def diffusion_of(schedule: str, num_steps: int = 100, zero_snr: bool = False) -> GaussianDiffusion:
    betas = make_betas(schedule, num_steps)
    return GaussianDiffusion(rescale_betas_zero_snr(betas) if zero_snr else betas)


def images(rng: torch.Generator, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 4, 5, dtype=torch.float64, generator=rng)


@SCHEDULES
def test_q_step_by_step_is_q_in_one_jump(schedule: str) -> None:
    """The mean and variance of x_t composed of x_s = sqrt(1 - beta_s) x_{s-1} + sqrt(beta_s) noise, for every t."""
    diffusion = diffusion_of(schedule)
    one = torch.ones(1, 1, dtype=torch.float64)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(diffusion.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert diffusion.q_sample(one, t, 0 * one).item() == pytest.approx(mean, rel=1e-12, abs=1e-15)
        assert diffusion.q_sample(0 * one, t, one).item() ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (3, 4), (2, 40), (40, 99), (98, 99)])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_posterior_is_bayes_rule(schedule: str, s: int, t: int) -> None:
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): its moments by numerical integration."""
    diffusion = diffusion_of(schedule)
    alpha_bar_s, alpha_bar_t = diffusion.alpha_bar(s).item(), diffusion.alpha_bar(t).item()
    x_0 = 0.7
    x_t = math.sqrt(alpha_bar_t) * x_0 - 0.8 * math.sqrt(1 - alpha_bar_t)
    ratio = alpha_bar_t / alpha_bar_s
    prior = stats.norm(math.sqrt(alpha_bar_s) * x_0, math.sqrt(1 - alpha_bar_s))

    def density(x_s: float, power: int) -> float:
        likelihood = stats.norm.pdf(x_t, math.sqrt(ratio) * x_s, math.sqrt(1 - ratio))
        return float(x_s**power * likelihood * prior.pdf(x_s))

    posterior = diffusion.posterior(t, s)
    mean = (posterior.c_0 * x_0 + posterior.c_t * x_t).item()
    sigma = posterior.sigma.item()
    bounds = (mean - 12 * sigma, mean + 12 * sigma)
    mass, first, second = (integrate.quad(density, *bounds, args=(p,), epsabs=0, epsrel=1e-11)[0] for p in range(3))
    assert mean == pytest.approx(first / mass, rel=1e-8, abs=1e-9)
    assert sigma**2 == pytest.approx(second / mass - (first / mass) ** 2, rel=1e-6)


@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_posterior_keeps_the_marginals(schedule: str, eta: float) -> None:
    """For any eta and any s < t, q(x_s | x_0) comes out of q(x_t | x_0) (Song et al. 2021, lemma 1)."""
    diffusion = diffusion_of(schedule)
    for t, s in [(0, -1), (1, 0), (50, 49), (50, 7), (99, 98), (99, 0), (99, -1)]:
        posterior = diffusion.posterior(t, s, eta)
        alpha_bar_t, alpha_bar_s = diffusion.alpha_bar(t), diffusion.alpha_bar(s)
        mean = posterior.c_0 + posterior.c_t * alpha_bar_t.sqrt()
        variance = posterior.c_t**2 * (1 - alpha_bar_t) + posterior.sigma**2
        torch.testing.assert_close(mean, alpha_bar_s.sqrt(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(variance, 1 - alpha_bar_s, rtol=1e-12, atol=1e-14)


def test_eta_1_on_neighbours_is_ddpm() -> None:
    """Equations 6 and 7 of Ho et al. 2020, in their own symbols."""
    diffusion = diffusion_of("linear")
    betas, alphas_cumprod = diffusion.betas.numpy(), diffusion.alphas_cumprod.numpy()
    previous = np.append(1.0, alphas_cumprod[:-1])
    t = torch.arange(100)
    posterior = diffusion.posterior(t, t - 1)
    np.testing.assert_allclose(posterior.c_0, np.sqrt(previous) * betas / (1 - alphas_cumprod), rtol=1e-10)
    np.testing.assert_allclose(
        posterior.c_t, np.sqrt(1 - betas) * (1 - previous) / (1 - alphas_cumprod), rtol=1e-10, atol=1e-15
    )
    np.testing.assert_allclose(
        posterior.sigma**2, (1 - previous) / (1 - alphas_cumprod) * betas, rtol=1e-10, atol=1e-15
    )


def test_eta_0_is_ddim(rng: torch.Generator) -> None:
    """Equation 12 of Song et al. 2021 without noise: keep the noise, change its share."""
    diffusion = diffusion_of("linear")
    x_0, noise = images(rng), images(rng)
    for t, s in [(99, 42), (42, 3), (3, -1)]:
        posterior = diffusion.posterior(t, s, eta=0.0)
        expected = diffusion.q_sample(x_0, s, noise)
        torch.testing.assert_close(posterior.mean(x_0, diffusion.q_sample(x_0, t, noise)), expected)
        torch.testing.assert_close(posterior.mean_of_noise(x_0, noise), expected)
        assert posterior.sigma == 0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@SCHEDULES
def test_predict_inverts_target(schedule: str, prediction_type: str, rng: torch.Generator) -> None:
    diffusion = diffusion_of(schedule)
    t = torch.tensor([0, 1, 60, 98])  # at 99 jsd has no signal left: see below
    x_0, noise = images(rng), images(rng)
    x_t = diffusion.q_sample(x_0, t, noise)
    predicted = diffusion.predict(diffusion.target(x_0, noise, t, prediction_type), x_t, t, prediction_type)
    torch.testing.assert_close(predicted[0], x_0, rtol=1e-7, atol=1e-7)
    if prediction_type != "posterior_mean":  # whose x_0 is scaled up to the noise of a nearly clean image
        torch.testing.assert_close(predicted[1], noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(diffusion.q_sample(predicted[0], t, predicted[1]), x_t)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_zero_terminal_snr_is_finite(prediction_type: str, rng: torch.Generator) -> None:
    for diffusion in (diffusion_of("linear", zero_snr=True), diffusion_of("jsd")):
        assert diffusion.alpha_bar(99) == 0
        assert diffusion.snr(99) == 0
        x_0, noise = images(rng), images(rng)
        x_t = diffusion.q_sample(x_0, 99, noise)
        torch.testing.assert_close(x_t, noise)
        output = diffusion.target(x_0, noise, 99, prediction_type)
        got_x_0, got_noise = diffusion.predict(output, x_t, 99, prediction_type)
        torch.testing.assert_close(got_noise, noise)
        torch.testing.assert_close(got_x_0, torch.zeros_like(x_0) if prediction_type == "epsilon" else x_0)
        for s in (98, 10, -1):
            for value in vars(diffusion.posterior(99, s)).values():
                assert value.isfinite()


def test_variances() -> None:
    diffusion = diffusion_of("linear", 1000)
    t = torch.arange(1, 1000)
    beta = diffusion.betas[1:]
    small = diffusion.log_variance(t, t - 1, "fixed_small").exp()
    large = diffusion.log_variance(t, t - 1, "fixed_large").exp()
    torch.testing.assert_close(large, beta)
    previous, current = diffusion.alphas_cumprod[:-1], diffusion.alphas_cumprod[1:]
    torch.testing.assert_close(small, (1 - previous) / (1 - current) * beta)
    for name in ("fixed_small", "fixed_large"):
        torch.testing.assert_close(
            diffusion.log_variance(t, t - 1, f"{name}_log"), diffusion.log_variance(t, t - 1, name)
        )
        # Ho et al.'s code: the first step borrows the second's posterior variance.
        torch.testing.assert_close(diffusion.log_variance(0, -1, name), small[0].log())


def test_learned_variances(rng: torch.Generator) -> None:
    diffusion = diffusion_of("linear")
    t = torch.tensor([1, 20, 50, 99])
    v = images(rng).tanh()
    assert diffusion.log_variance(t, t - 1, "learned", v) is v
    small, large = (diffusion.log_variance(t, t - 1, name) for name in ("fixed_small", "fixed_large"))
    for value, expected in [(-1.0, small), (1.0, large), (0.0, (small + large) / 2)]:
        got = diffusion.log_variance(t, t - 1, "learned_range", torch.full_like(v, value))
        torch.testing.assert_close(got, expected.view(-1, 1, 1, 1).expand_as(v))


def test_half_precision_rounds_once(rng: torch.Generator) -> None:
    """x_t in bf16 is the float64 one, rounded: the smallest noise of all does not vanish (it does in diffusers)."""
    diffusion = diffusion_of("linear", 1000)
    x_0, noise = images(rng).bfloat16(), images(rng).bfloat16()
    for t in (0, 1, 10, 999):
        exact = diffusion.q_sample(x_0.double(), t, noise.double())
        # float32 inside, then one rounding of 8 bits
        torch.testing.assert_close(diffusion.q_sample(x_0, t, noise).double(), exact, rtol=2**-8, atol=1e-6)


def test_bad_input() -> None:
    diffusion = diffusion_of("linear")
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"prediction_type='noise' is not known; use one of epsilon, sample"):
        diffusion.predict(x, x, 3, "noise")
    with pytest.raises(ValueError, match=r"timesteps 100 .. 100 are outside -1 .. 99"):
        diffusion.alpha_bar(100)
    with pytest.raises(ValueError, match=r"timesteps -2 .. 5 are outside -1 .. 99"):
        diffusion.q_sample(x, torch.tensor([5, -2]), x)
    with pytest.raises(ValueError, match=r"variance_type='big' is not known; use one of fixed_small"):
        diffusion.log_variance(3, 2, "big")
    with pytest.raises(
        ValueError, match=r"variance_type='learned_range' needs a network with twice the image's channels"
    ):
        diffusion.log_variance(3, 2, "learned_range")
    with pytest.raises(ValueError, match=r"betas has shape \(0,\); expected one variance per step"):
        GaussianDiffusion(torch.zeros(0))
