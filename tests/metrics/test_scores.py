"""Scores of features: against their definitions, and their errors against many draws."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

from ddpm_hf.metrics.fid import frechet_distance_of_gaussians
from ddpm_hf.metrics.scores import Score, fid, inception_score, kid, of_manifolds, scores_of


def drawn(number: int, size: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, size, generator=generator, dtype=torch.float64) + shift


def of_sixty_digits(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """By the eigenvalues of the product of the covariances, which is not symmetric."""
    with mpmath.workdps(60):
        a, b = (mpmath.matrix(x.tolist()) for x in (covariance_a, covariance_b))
        eigenvalues = mpmath.eig(a * b, left=False, right=False)
        root = mpmath.fsum(mpmath.sqrt(mpmath.re(value)) for value in eigenvalues)
        means = mpmath.fsum(mpmath.mpf(x) ** 2 for x in (mean_a - mean_b).tolist())
        return float(means + mpmath.fsum((a + b)[i, i] for i in range(len(mean_a))) - 2 * root)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_the_frechet_distance_is_that_of_sixty_digits(spread: float) -> None:
    """With axes of very different lengths, as features have them."""
    size = 10
    scale = torch.logspace(0, math.log10(spread) if spread < 1 else 0, size, dtype=torch.float64)
    covariances = [torch.cov((drawn(40, size, seed) @ drawn(size, size, seed + 2) * scale).T) for seed in (0, 1)]
    means = drawn(1, size, 5)[0] * scale, drawn(1, size, 6)[0] * scale
    arguments = means[0], covariances[0], means[1], covariances[1]
    assert frechet_distance_of_gaussians(*arguments) == pytest.approx(of_sixty_digits(*arguments), rel=1e-9)


def test_kid_is_the_unbiased_estimate_with_a_cubic_kernel() -> None:
    real, fake = drawn(50, 6, 0), drawn(50, 6, 1, shift=0.5)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 6 + 1) ** 3

    within = [(kernel(x, x).sum() - kernel(x, x).trace()) / (50 * 49) for x in (real, fake)]
    expected = within[0] + within[1] - 2 * kernel(real, fake).mean()
    # Of 50 images each, every subset is all of them.
    assert kid(fake, real)["kid"].value == pytest.approx(expected.item(), rel=1e-6)


def test_the_inception_score_is_the_exponential_of_the_information() -> None:
    logits = torch.cat([4 * torch.eye(4, dtype=torch.float64).repeat(100, 1)])[torch.randperm(400)]
    found = inception_score(logits)["is"].value
    p = logits[0].softmax(0)
    even = math.exp((p * (p / 0.25).log()).sum().item())
    assert found == pytest.approx(even, rel=0.05)  # ten parts of 40 images have nearly even classes
    assert inception_score(torch.zeros(100, 4).double())["is"].value == pytest.approx(1)


def test_the_errors_are_those_of_many_draws() -> None:
    """The spread over independent sets of samples is what the bootstrap of one of them says, within a third or so."""
    real = drawn(400, 4, 0)
    sets = [drawn(200, 4, seed, shift=0.4) for seed in range(1, 61)]
    mean, covariance = real.mean(0), torch.cov(real.T)

    def spread(values: list[float]) -> float:
        return torch.tensor(values, dtype=torch.float64).std().item()

    of_many = spread([fid(x, mean, covariance)["fid"].value for x in sets])
    of_one = fid(sets[0], mean, covariance, bootstrap=60)["fid"].error
    assert of_one is not None
    assert 0.6 < of_one / of_many < 1.6
    values = [of_manifolds(x, real, ("precision",), 3, bootstrap=2)["precision"] for x in sets]
    assert values[0].error is not None
    assert 0.6 < values[0].error / spread([score.value for score in values]) < 1.6


def test_all_scores_come_in_one_order_and_only_those_asked_for() -> None:
    real, fake = drawn(60, 4, 0), drawn(50, 4, 1)
    found = scores_of(["density_coverage", "fid", "is"], fake, real, logits=lambda features: features)
    assert list(found) == ["fid", "is", "density", "coverage"]
    assert all(score.error is None for score in found.values())
    assert str(Score(1.23456)) == "1.235"
    assert str(Score(1.23456, 0.1)) == "1.235 ± 0.2"
