"""The bound's terms against numerical integration, and the decoder against what a distribution must be."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from ddpm_hf.diffusion.choices import PREDICTION_TYPES
from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.noise_schedules import make_betas, rescale_betas_zero_snr
from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.diffusion.variational import bound_term, discretised_log_likelihood, normal_divergence, prior_term

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("sigma", [1e-3, 0.01, 0.1, 1.0, 10.0])
def test_the_decoders_probabilities_sum_to_one_over_the_levels(sigma: float) -> None:
    for mean in (-3.0, -1.0, -0.5, 0.0, 0.3, 1.0, 1.7):
        log_likelihood = discretised_log_likelihood(
            LEVELS, torch.full_like(LEVELS, mean), torch.full_like(LEVELS, sigma)
        )
        assert float(log_likelihood.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("levels", [2, 101, 65536])
def test_the_decoders_probabilities_sum_to_one_over_any_number_of_levels(levels: int) -> None:
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    for mean, sigma in ((0.3, 1e-3), (-0.999, 0.01), (0.0, 1.0)):
        found = discretised_log_likelihood(
            x, torch.full_like(x, mean), torch.full_like(x, sigma), half_bin=1 / (levels - 1)
        )
        assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)
        law = stats.norm(mean, sigma)
        ends = np.concatenate([[-np.inf], ((x[1:] + x[:-1]) / 2).numpy(), [np.inf]])
        assert np.allclose(found.exp().numpy(), np.diff(law.cdf(ends)), rtol=1e-6, atol=1e-14)


def test_the_decoder_is_exact_in_the_far_tails_with_gradients() -> None:
    """Against integrals of the density over the bin, with the largest value of the integrand taken out."""
    mean, sigma = torch.tensor(0.2, dtype=torch.float64, requires_grad=True), torch.tensor(0.01, dtype=torch.float64)
    for level in (0, 1, 60, 150, 153, 200, 254, 255):
        x = LEVELS[level]
        low = -np.inf if level == 0 else float(x) - 1 / 255
        high = np.inf if level == 255 else float(x) + 1 / 255
        peak = -(max(low - 0.2, 0.2 - high, 0) ** 2) / 2e-4

        def density(y: float, peak: float = peak) -> float:
            return math.exp(-((y - 0.2) ** 2) / 2e-4 - peak)

        nearest = min(max(0.2, low), high)
        points = sorted({max(low, nearest - 0.2), nearest, min(high, nearest + 0.2)})
        area = sum(integrate.quad(density, a, b, epsabs=0, epsrel=1e-11, limit=500)[0] for a, b in pairwise(points))
        expected = math.log(area) + peak - math.log(0.01 * math.sqrt(2 * math.pi))
        found = discretised_log_likelihood(x, mean, sigma)
        assert found.item() == pytest.approx(expected, rel=1e-7)
        (gradient,) = torch.autograd.grad(found, mean)
        step = 1e-6
        up, down = (discretised_log_likelihood(x, mean.detach() + d, sigma) for d in (step, -step))
        assert float(gradient) == pytest.approx(float(up - down) / (2 * step), rel=1e-4, abs=1e-4)


def integrated(q_mean: float, q_sigma: float, p_mean: float, p_sigma: float) -> float:
    """KL of two normal distributions in bits, by Simpson's rule over the first one's mass."""
    x = np.linspace(q_mean - 14 * q_sigma, q_mean + 14 * q_sigma, 20_001)
    q, p = stats.norm(q_mean, q_sigma), stats.norm(p_mean, p_sigma)
    return float(integrate.simpson(q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), x=x)) / math.log(2)


def by_hand(diffusion: GaussianDiffusion, x_0: float, x_t: float, t: int, guess: float, variance: float) -> float:
    """One value's term, from Bayes' rule on the chain's own conditionals (not from the closed form in the package)."""
    beta = float(diffusion.betas[t])
    before = float(torch.prod(1 - diffusion.betas[:t]))

    # q(x_{t-1} | x_0) = N(a, b) and q(x_t | x_{t-1}) = N(c x_{t-1}, beta), multiplied.
    def posterior(x: float) -> tuple[float, float]:
        a, b, c = math.sqrt(before) * x, 1 - before, math.sqrt(1 - beta)
        precision = 1 / b + c**2 / beta
        return (a / b + c * x_t / beta) / precision, 1 / precision

    if t == 0:
        low = -np.inf if x_0 < -0.999 else x_0 - 1 / 255
        high = np.inf if x_0 > 0.999 else x_0 + 1 / 255
        p = stats.norm(guess, math.sqrt(variance))
        return -math.log2(p.cdf(high) - p.cdf(low))
    (mean, true_variance), (guess_mean, _) = posterior(x_0), posterior(guess)
    return integrated(mean, math.sqrt(true_variance), guess_mean, math.sqrt(variance))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_terms_agree_with_numerical_integration(prediction_type: str, variance_type: str, rng: torch.Generator) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 20, 1e-3, 0.3))
    t = torch.arange(20)
    x_0 = LEVELS[torch.randint(256, (20, 1, 1, 2), generator=rng)]
    noise, wrong = (torch.randn(x_0.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    x_t = diffusion.q_sample(x_0, t, noise)
    guess = x_0 + 0.02 * wrong
    output = diffusion.target(guess, diffusion.noise_of(guess, x_t, t), t, prediction_type)

    beta, alpha_bar = diffusion.betas, torch.cumprod(1 - diffusion.betas, 0)
    small = beta * (1 - torch.cat([torch.ones(1), alpha_bar[:-1]])) / (1 - alpha_bar)
    small[0] = small[1]
    large = torch.cat([small[1:2], beta[1:]])
    fraction = torch.rand(20, generator=rng, dtype=torch.float64)
    variance = {
        "fixed_small": small,
        "fixed_large": large,
        "learned": small * 1.5,
        "learned_range": large**fraction * small ** (1 - fraction),
    }[variance_type]
    spoken = {"learned": variance.log(), "learned_range": 2 * fraction - 1}
    if variance_type in spoken:
        output = torch.cat([output, spoken[variance_type].view(-1, 1, 1, 1).expand_as(x_0)], dim=1)

    terms = bound_term(Denoiser(diffusion, prediction_type, variance_type), output, x_0, x_t, t)
    for i in range(20):
        values = zip(*(x[i].flatten().tolist() for x in (x_0, x_t, guess)))
        expected = [by_hand(diffusion, a, b, i, c, float(variance[i])) for a, b, c in values]
        assert float(terms[i]) == pytest.approx(sum(expected) / 2, rel=1e-6, abs=1e-6)


def test_the_prior_term_is_the_divergence_from_noise(rng: torch.Generator) -> None:
    diffusion = GaussianDiffusion(make_betas("linear", 20, 1e-3, 0.1))
    x_0 = torch.randn(3, 1, 1, 2, generator=rng, dtype=torch.float64)
    last = float(diffusion.alphas_cumprod[-1])
    for found, image in zip(prior_term(diffusion, x_0), x_0):
        each = [integrated(math.sqrt(last) * float(x), math.sqrt(1 - last), 0, 1) for x in image.flatten()]
        assert float(found) == pytest.approx(sum(each) / 2, abs=1e-9)
    zero_snr = GaussianDiffusion(rescale_betas_zero_snr(make_betas("linear", 20)))
    assert prior_term(zero_snr, x_0).abs().max() < 1e-12


def test_the_divergence_is_torchs_own(rng: torch.Generator) -> None:
    q, other_q, p, other_p = (torch.randn(100, generator=rng, dtype=torch.float64) for _ in range(4))

    def normal(mean: Tensor, log_variance: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(mean, (log_variance / 2).exp())

    expected = torch.distributions.kl_divergence(normal(q, other_q), normal(p, other_p))
    torch.testing.assert_close(normal_divergence(q, other_q, p, other_p), expected)
