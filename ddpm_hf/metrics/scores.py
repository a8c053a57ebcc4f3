"""Features -> named scores, each with the interval in which chance leaves it."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm_hf.metrics.fid import frechet_distance_of_gaussians, mean_and_covariance, warn_if_few
from ddpm_hf.metrics.precision_recall import manifolds
from ddpm_hf.metrics.reference import Statistics

METRICS = ("fid", "kid", "is", "precision_recall", "density_coverage")
K = {"precision_recall": 3, "density_coverage": 5}
"""Of the papers: Kynkaanniemi et al. 2019 and Naeem et al. 2020."""


@dataclass(frozen=True)
class Score:
    """A value and its standard error over samples drawn anew (bootstrap); None where none was asked for."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.error is None else f"{self.value:.4g} ± {1.96 * self.error:.2g}"


NEED_IMAGES = ("kid", "precision_recall", "density_coverage")
"""The metrics for which the mean and covariance of the reference are not enough."""


def scores_of(
    metrics: Sequence[str],
    fake: Tensor,
    real: Tensor | None,
    statistics: Statistics | None = None,
    logits: Callable[[Tensor], Tensor] | None = None,
    bootstrap: int = 0,
) -> dict[str, Score]:
    """All that is asked for of one set of images, in the order of `METRICS`.

    Args:
        metrics: Some of `METRICS`.
        fake: Features ``(N, D)`` of the images.
        real: Features ``(M, D)`` of the reference; None where only its statistics are at hand.
        statistics: Of the reference; computed from ``real`` when None.
        logits: Class scores of features, for the Inception score.
        bootstrap: Samples drawn anew for the errors; 0 gives none.

    Raises:
        ValueError: a metric needs what is not given, or more images.
    """
    scores: dict[str, Score] = {}
    for metric in (name for name in METRICS if name in metrics):
        if metric == "is":
            if logits is None:
                raise ValueError("the metric 'is' needs class scores, which this feature network does not have")
            scores |= inception_score(logits(fake), bootstrap)
        elif metric == "fid":
            if statistics is None:
                assert real is not None
                statistics = Statistics(*mean_and_covariance(real))
            num_real = None if real is None else len(real)
            scores |= fid(fake, statistics.mean, statistics.covariance, num_real, bootstrap)
        elif real is None:
            raise ValueError(f"the metric {metric!r} needs the reference's images, not only their mean and covariance")
        elif metric == "kid":
            scores |= kid(fake, real, bootstrap)
        else:
            scores |= of_manifolds(fake, real, tuple(metric.split("_")), K[metric], bootstrap)
    return scores


def fewest_images(metrics: Sequence[str]) -> int:
    """How many images the metrics need at least, of either side."""
    return max(2, *(K[metric] + 1 for metric in metrics if metric in K), 0)


def fid(
    fake: Tensor, mean: Tensor, covariance: Tensor, num_real: int | None = None, bootstrap: int = 0
) -> dict[str, Score]:
    """Frechet distance of features ``(N, D)`` to a Gaussian, of ``num_real`` images if that is known."""
    warn_if_few(min(len(fake), num_real or len(fake)), fake.shape[1])

    def distance(features: Tensor) -> float:
        return frechet_distance_of_gaussians(*mean_and_covariance(features), mean, covariance)

    return {"fid": Score(distance(fake), _error(distance, fake, bootstrap))}


def kid(fake: Tensor, real: Tensor, bootstrap: int = 0, subsets: int = 100) -> dict[str, Score]:
    """Kernel distance (Binkowski et al. 2018) by torchmetrics: the mean over subsets of at most 1,000 images."""

    def distance(features: Tensor, subsets: int) -> float:
        size = min(1000, len(features), len(real))
        metric = _quietly(KernelInceptionDistance, _Given(features.shape[1]), subsets=subsets, subset_size=size)
        metric.update(real.double(), real=True)
        metric.update(features.double(), real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(metric.compute()[0])

    return {"kid": Score(distance(fake, subsets), _error(lambda x: distance(x, subsets=10), fake, bootstrap))}


def inception_score(logits: Tensor, bootstrap: int = 0) -> dict[str, Score]:
    """Inception score (Salimans et al. 2016) by torchmetrics: the mean over ten parts, from class scores ``(N, K)``."""

    def score(values: Tensor) -> float:
        metric = _quietly(InceptionScore, _Given(values.shape[1]), splits=10)
        metric.update(values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(metric.compute()[0])

    return {"is": Score(score(logits.double()), _error(score, logits.double(), bootstrap))}


def of_manifolds(fake: Tensor, real: Tensor, names: tuple[str, ...], k: int, bootstrap: int = 0) -> dict[str, Score]:
    """Those named of precision, recall, density and coverage; each is a mean over images, so its error is closed."""
    found = manifolds(real, fake, k)
    parts = {
        "precision": found.fake_is_real,
        "recall": found.real_is_fake,
        "density": found.balls_round_fake,
        "coverage": found.real_has_fake,
    }
    scores = {}
    for name in names:
        part = parts[name].double()
        error = part.std(correction=0).item() / math.sqrt(len(part)) if bootstrap else None
        scores[name] = Score(part.mean().item(), error)
    return scores


def _error(function: Callable[[Tensor], float], values: Tensor, bootstrap: int) -> float | None:
    """Standard deviation of the function over samples drawn from the values with replacement, from a fixed seed."""
    if bootstrap < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = [
        function(values[torch.randint(len(values), (len(values),), generator=generator)]) for _ in range(bootstrap)
    ]
    return torch.tensor(drawn, dtype=torch.float64).std().item()


def _quietly(kind: type[Metric], *arguments: Any, **options: Any) -> Metric:
    """The metric of this process alone, without the warning that it holds the features, as all of these do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(*arguments, sync_on_compute=False, **options)


class _Given(nn.Module):
    """Stands where torchmetrics wants a network; the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
