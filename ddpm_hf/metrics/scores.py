"""Features -> named scores, each with the interval in which chance leaves it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm_hf.metrics.fid import frechet_distance_of_gaussians, mean_and_covariance, warn_if_few
from ddpm_hf.metrics.precision_recall import manifolds

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
        metric = KernelInceptionDistance(
            feature=_Given(features.shape[1]), subsets=subsets, subset_size=min(1000, len(features), len(real))
        )
        metric.update(real.double(), real=True)
        metric.update(features.double(), real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(metric.compute()[0])

    return {"kid": Score(distance(fake, subsets), _error(lambda x: distance(x, subsets=10), fake, bootstrap))}


def inception_score(logits: Tensor, bootstrap: int = 0) -> dict[str, Score]:
    """Inception score (Salimans et al. 2016) by torchmetrics: the mean over ten parts, from class scores ``(N, K)``."""

    def score(values: Tensor) -> float:
        metric = InceptionScore(feature=_Given(values.shape[1]), splits=10)
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


class _Given(nn.Module):
    """Stands where torchmetrics wants a network; the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
