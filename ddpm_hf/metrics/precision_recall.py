"""What share of the fakes look real, what share of the reals are covered: improved precision and recall, density and
coverage, as functions of features and as torchmetrics metrics of images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ddpm_hf.metrics.neighbours import BLOCK_BYTES, balls_and_points, squared_distance_to_kth_neighbour


@dataclass(frozen=True)
class Manifolds:
    """Two sets of features, each as the union of balls round its points, up to their k-th nearest neighbours in it.

    Means over images, so that what an image adds to a score can be looked at, and drawn again.

    Args:
        fake_is_real: bool ``(M,)``: the fake lies in a ball of the reals. Its mean is the precision.
        real_is_fake: bool ``(N,)``: the real lies in a ball of the fakes. Its mean is the recall.
        balls_round_fake: float ``(M,)``: in how many balls of the reals the fake lies, over k. Its mean is the density.
        real_has_fake: bool ``(N,)``: the real's ball holds a fake. Its mean is the coverage.
    """

    fake_is_real: Tensor
    real_is_fake: Tensor
    balls_round_fake: Tensor
    real_has_fake: Tensor

    @property
    def scores(self) -> dict[str, float]:
        """The four means."""
        parts = {
            "precision": self.fake_is_real,
            "recall": self.real_is_fake,
            "density": self.balls_round_fake,
            "coverage": self.real_has_fake,
        }
        return {name: part.double().mean().item() for name, part in parts.items()}


def manifolds(real: Tensor, fake: Tensor, k: int, block_bytes: int = BLOCK_BYTES) -> Manifolds:
    """Compare two sets of features (Kynkaanniemi et al. 2019, eq. 2; Naeem et al. 2020, eqs. 5 and 6).

    All depend on the sizes of the sets: compare values of equally many images. A point at a ball's very edge is inside.

    Args:
        real: ``(N, D)``, any floating type; the result is that of float64.
        fake: ``(M, D)``.
        k: Which neighbour bounds the balls; 3 in the first paper, 5 in the second.
        block_bytes: Memory of one block of distances; it does not change the result.

    Raises:
        ValueError: if a set has no more than k images, the numbers of features differ, or one is not finite.
    """
    for name, features in (("real", real), ("fake", fake)):
        if features.ndim != 2 or len(features) <= k:
            raise ValueError(
                f"precision and recall with k = {k} were given {name} features of shape {tuple(features.shape)} and "
                "need (N, D) with N above k; give more images."
            )
        if not features.isfinite().all():
            raise ValueError(f"precision and recall were given {name} features that are not finite.")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"precision and recall were given {real.shape[1]} and {fake.shape[1]} features an image; "
            "use the same feature network for both sets."
        )
    around_real = squared_distance_to_kth_neighbour(real, k, block_bytes)
    around_fake = squared_distance_to_kth_neighbour(fake, k, block_bytes)
    balls_round_fake, real_has_fake = balls_and_points(fake, real, around_real, block_bytes)
    balls_round_real, _ = balls_and_points(real, fake, around_fake, block_bytes)
    return Manifolds(balls_round_fake > 0, balls_round_real > 0, balls_round_fake.double() / k, real_has_fake)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of two sets of features; see `manifolds`."""
    scores = manifolds(real, fake, k).scores
    return scores["precision"], scores["recall"]


class _ManifoldMetric(Metric):
    """Features of real and fake images, gathered over all processes.

    Args:
        feature: Network from uint8 images ``(B, C, H, W)`` to features ``(B, D)``.
        k: Which neighbour bounds the balls.
        options: As of any torchmetrics metric.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, feature: nn.Module, k: int, **options: Any) -> None:
        super().__init__(**options)
        self.feature = feature
        self.k = k
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Take in a batch of images, uint8 ``(B, C, H, W)``."""
        (self.real_features if real else self.fake_features).append(self.feature(images))

    def _scores(self) -> dict[str, float]:
        if not len(self.real_features) or not len(self.fake_features):
            raise ValueError("update(images, real=True) and update(images, real=False) must both come before compute")
        return manifolds(dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features), self.k).scores


class ImprovedPrecisionRecall(_ManifoldMetric):
    """Improved precision and recall (Kynkaanniemi et al. 2019) as a torchmetrics metric.

    Example:
        >>> metric = ImprovedPrecisionRecall(DigitsFeatures.load())
        >>> metric.update(reals, real=True); metric.update(fakes, real=False)
        >>> metric.compute()
        {'precision': tensor(0.8620), 'recall': tensor(0.8390)}
    """

    def __init__(self, feature: nn.Module, k: int = 3, **options: Any) -> None:
        super().__init__(feature, k, **options)

    def compute(self) -> dict[str, Tensor]:
        """``precision`` and ``recall``, float64 scalars."""
        scores = self._scores()
        return {name: torch.tensor(scores[name], dtype=torch.float64) for name in ("precision", "recall")}


class DensityCoverage(_ManifoldMetric):
    """Density and coverage (Naeem et al. 2020) as a torchmetrics metric."""

    def __init__(self, feature: nn.Module, k: int = 5, **options: Any) -> None:
        super().__init__(feature, k, **options)

    def compute(self) -> dict[str, Tensor]:
        """``density``, which may exceed 1, and ``coverage``, float64 scalars."""
        scores = self._scores()
        return {name: torch.tensor(scores[name], dtype=torch.float64) for name in ("density", "coverage")}
