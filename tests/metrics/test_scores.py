"""Scores of features: against their definitions, and their errors against many draws."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

from ddpm_hf.metrics import FrechetDistance, ImageMetric, ImprovedPrecisionRecall, InceptionScore, KernelDistance
from ddpm_hf.metrics.accuracy import ClassAccuracy
from ddpm_hf.metrics.evaluation import Evaluation, Results, Score
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.frechet import frechet_distance, frechet_distance_of_gaussians, mean_and_covariance
from ddpm_hf.metrics.reference import Statistics
from ddpm_hf.metrics.table import IN_TRAINING, METRICS, OF_FILES, SCORES, fewest_images, scores_of


def drawn(number: int, size: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, size, generator=generator, dtype=torch.float64) + shift


def scored(metric: ImageMetric, fake: Tensor, real: Tensor | None = None) -> dict[str, float]:
    metric.reset()
    if real is not None:
        metric.update(real, real=True)
    metric.update(fake, real=False)
    return {name: value.item() for name, value in metric.compute().items()}


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
    assert scored(KernelDistance(), fake, real)["kid"] == pytest.approx(expected.item(), rel=1e-6)


def test_the_inception_score_is_the_exponential_of_the_information() -> None:
    logits = torch.cat([4 * torch.eye(4, dtype=torch.float64).repeat(100, 1)])[torch.randperm(400)]
    found = scored(InceptionScore(), logits)["is"]
    p = logits[0].softmax(0)
    even = math.exp((p * (p / 0.25).log()).sum().item())
    assert found == pytest.approx(even, rel=0.05)  # ten parts of 40 images have nearly even classes
    assert scored(InceptionScore(), torch.zeros(100, 4))["is"] == pytest.approx(1)


def test_the_errors_are_those_of_many_draws() -> None:
    """The spread over independent sets of samples is what the bootstrap of one of them says, within a third or so."""
    real = drawn(400, 4, 0)
    sets = [drawn(200, 4, seed, shift=0.4) for seed in range(1, 61)]
    fid, precision = FrechetDistance(), ImprovedPrecisionRecall()

    def spread(values: list[float]) -> float:
        return torch.tensor(values, dtype=torch.float64).std().item()

    of_many = spread([scored(fid, x, real)["fid"] for x in sets])
    scored(fid, sets[0], real)
    assert 0.6 < fid.errors(sets[0], draws=60)["fid"].item() / of_many < 1.6
    of_many = spread([scored(precision, x, real)["precision"] for x in sets])
    scored(precision, sets[0], real)
    assert 0.6 < precision.errors(sets[0], draws=2)["precision"].item() / of_many < 1.6


def test_no_set_drawn_anew_has_a_lower_fid() -> None:
    """So an interval of percentiles, or BCa's, would miss the value, while the spread is right (above)."""
    real, fake = drawn(400, 16, 0), 1.05 * drawn(200, 16, 1)
    value = frechet_distance(fake, real)
    generator = torch.Generator().manual_seed(0)
    sets = [fake[torch.randint(200, (200,), generator=generator)] for _ in range(30)]
    assert min(frechet_distance(x, real) for x in sets) > value


def test_the_bootstrap_is_the_metric_of_sets_drawn_anew() -> None:
    """By hand, with metrics that are given each drawn set."""
    real, fake = drawn(60, 4, 0), drawn(50, 4, 1)
    generator = torch.Generator().manual_seed(0)
    sets = [fake[torch.randint(50, (50,), generator=generator)] for _ in range(5)]
    metrics = {"fid": (FrechetDistance(), FrechetDistance()), "kid": (KernelDistance(), KernelDistance(subsets=10))}
    for name, (metric, fresh) in metrics.items():
        value = scored(metric, fake, real)[name]
        expected = torch.tensor([scored(fresh, x, real)[name] for x in sets], dtype=torch.float64).std().item()
        assert metric.errors(fake, draws=5)[name].item() == pytest.approx(expected, rel=1e-9)
        assert metric.compute()[name].item() == value, "its own state stays as it was"


@pytest.mark.parametrize("sizes", [[50], [20, 30], [1, 48, 1], [0, 50]])
def test_the_frechet_distance_of_batches_is_that_of_the_whole_far_from_the_origin(sizes: list[int]) -> None:
    """Where sums of squares would lose all digits."""
    real, fake = 1e6 + drawn(60, 4, 0), 1e6 + drawn(50, 4, 1)
    metric = FrechetDistance()
    for batch in real.split(7):
        metric.update(batch, real=True)
    for batch in fake.split(sizes):
        metric.update(batch, real=False)
    assert metric.compute()["fid"].item() == pytest.approx(frechet_distance(fake, real), rel=1e-8)


def test_statistics_stand_for_the_real_images() -> None:
    real, fake = drawn(60, 4, 0), drawn(50, 4, 1)
    metric = FrechetDistance()
    metric.update_statistics(*mean_and_covariance(real))
    metric.update(fake, real=False)
    assert metric.compute()["fid"].item() == scored(FrechetDistance(), fake, real)["fid"]


def test_accuracy_by_hand() -> None:
    metric = ClassAccuracy()
    metric.update(torch.eye(4), real=False, labels=torch.tensor([0, 1, 2, 0]))
    assert metric.compute()["accuracy"].item() == 0.75
    assert metric.errors(torch.eye(4), draws=2)["accuracy"].item() == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    with pytest.raises(ValueError, match="give update its labels"):
        metric.update(torch.eye(4), real=False)


@pytest.mark.parametrize("name", IN_TRAINING)
def test_what_the_table_says_of_a_metric_is_true(name: str) -> None:
    """Its scores, the fewest images, and whether the real ones are needed."""
    row = METRICS[name]
    labels = {"labels": torch.arange(row.fewest_images) % 2} if row.needs_labels else {}
    metric = row.load()()
    metric.update(drawn(row.fewest_images, 3, 0), real=False, **labels)
    if row.reference is None:
        metric.compute()
    else:
        with pytest.raises(ValueError, match="real"):
            metric.compute()
        metric.update(drawn(row.fewest_images, 3, 1), real=True)
    assert list(metric.compute()) == [score.name for score in row.scores]
    assert (row.reference == "statistics") == hasattr(metric, "update_statistics")
    if row.fewest_images > 2:
        fewer = row.load()()
        for is_real in (True, False):
            fewer.update(drawn(row.fewest_images - 1, 3, int(is_real)), real=is_real)
        with pytest.raises(ValueError, match=r"N above k|at least"):
            fewer.compute()


def test_the_better_of_two_scores() -> None:
    fid, precision = SCORES["fid"], SCORES["precision"]
    assert fid.is_better(1.0, than=2.0)
    assert not fid.is_better(2.0, than=2.0)
    assert precision.is_better(2.0, than=1.0)
    assert precision.is_better(0.0, than=None)
    assert not any(score.is_better(math.nan, than=than) for score in (fid, precision) for than in (None, 1.0))


DIGITS = load_extractor("digits")


def features_of(number: int, seed: int) -> Tensor:
    return drawn(number, 64, seed).float().abs()


def test_all_scores_come_in_one_order_and_only_those_asked_for() -> None:
    evaluation = Evaluation(["density_coverage", "accuracy", "fid", "is"], DIGITS, features_of(160, 0))
    found = evaluation.score(features_of(150, 1))
    assert list(found) == ["fid", "is", "density", "coverage"]
    assert list(evaluation.score(features_of(150, 1), torch.zeros(150, dtype=torch.int64))) == [*found, "accuracy"]
    assert all(score.error is None for score in found.values())
    assert str(Score(1.23456)) == "1.235"
    assert str(Score(1.23456, 0.1)) == "1.235 ± 0.2"
    assert fewest_images(["fid", "density_coverage"]) == 6
    assert scores_of(["precision_recall", "fid"]) == ["fid", "precision", "recall"]


def test_one_set_after_another_scores_as_alone() -> None:
    real, one, two = features_of(160, 0), features_of(150, 1), features_of(140, 2)
    several = Evaluation(OF_FILES, DIGITS, real, bootstrap=3)
    assert [several.score(x) for x in (one, two, one)] == [
        Evaluation(OF_FILES, DIGITS, real, bootstrap=3).score(x) for x in (one, two, one)
    ]


def test_only_metrics_of_statistics_take_these() -> None:
    statistics = Statistics(*mean_and_covariance(features_of(160, 0)))
    found = Evaluation(["fid", "is"], DIGITS, statistics).score(features_of(150, 1))
    assert found == Evaluation(["fid", "is"], DIGITS, features_of(160, 0)).score(features_of(150, 1))
    with pytest.raises(ValueError, match="'kid' needs the reference's images"):
        Evaluation(["kid"], DIGITS, statistics)


def test_results_are_score_by_score_with_the_ratio_where_both_are_there() -> None:
    sets = {"samples": {"fid": Score(3.0, 0.5), "kid": Score(1.0)}, "held_out": {"fid": Score(2.0), "kid": Score(-1.0)}}
    results = Results(sets, {"samples": 9, "held_out": 9}, 20, "digits", "abc")
    assert results.to_dict() == {
        "scores": {"fid": {"samples": 3.0, "held_out": 2.0, "ratio": 1.5}, "kid": {"samples": 1.0, "held_out": -1.0}},
        "errors": {"fid": {"samples": 0.5}},
        "num_images": {"samples": 9, "held_out": 9},
        "extractor": "digits",
        "extractor_sha256": "abc",
        "reference_images": 20,
        "copying": {},
        "notes": [],
    }
    assert results.of("samples") == {"fid": 3.0, "kid": 1.0}
