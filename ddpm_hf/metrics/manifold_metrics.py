"""What share of the fakes look real, what share of the reals are covered: improved precision and recall, density and
coverage, as functions of features and as metrics."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ddpm_hf.metrics.base import MeanOverImages
from ddpm_hf.metrics.neighbours import TILE, memberships, squared_distance_to_kth_neighbour
from ddpm_hf.settings import as_int


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
    def parts(self) -> dict[str, Tensor]:
        """Score name -> what each image adds to it."""
        return {
            "precision": self.fake_is_real,
            "recall": self.real_is_fake,
            "density": self.balls_round_fake,
            "coverage": self.real_has_fake,
        }

    @property
    def scores(self) -> dict[str, float]:
        """The four means."""
        return {name: part.double().mean().item() for name, part in self.parts.items()}


def manifolds(real: Tensor, fake: Tensor, k: int, tile: int = TILE) -> Manifolds:
    """Compare two sets of features (Kynkaanniemi et al. 2019, eq. 2; Naeem et al. 2020, eqs. 5 and 6).

    All depend on the sizes of the sets: compare values of equally many images. A point at a ball's very edge is inside.

    Args:
        real: ``(N, D)``, any floating type; the result is that of float64.
        fake: ``(M, D)``.
        k: Which neighbour bounds the balls; 3 in the first paper, 5 in the second.
        tile: Rows and columns of one tile of distances; it does not change the result.

    Raises:
        ValueError: if k is below 1, a set has no more than k images, the numbers of features differ, or one is not
            finite.
    """
    check_k(k)
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
    around_real = squared_distance_to_kth_neighbour(real, k, tile)
    around_fake = squared_distance_to_kth_neighbour(fake, k, tile)
    fakes, reals = memberships(fake, real, around_fake, around_real, tile)
    return Manifolds(fakes.balls > 0, reals.balls > 0, fakes.balls.double() / k, fakes.hit)


def check_k(k: int) -> int:
    """The number of a neighbour.

    Raises:
        ValueError: it is no whole number from 1.
    """
    if as_int("k", k) < 1:
        raise ValueError(f"k={k} must be 1 or more: a ball reaches to the k-th nearest other image.")
    return k


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of two sets of features; see `manifolds`."""
    scores = manifolds(real, fake, k).scores
    return scores["precision"], scores["recall"]


class _ManifoldMetric(MeanOverImages):
    """Some of the four scores.

    Args:
        feature: See `ImageMetric`.
        k: Which neighbour bounds the balls.
        options: See `ImageMetric`.

    Raises:
        ValueError: k is no whole number from 1.
    """

    names: tuple[str, ...]

    def __init__(self, feature: nn.Module | None, k: int, **options: Any) -> None:
        super().__init__(feature, **options)
        self.k = check_k(k)

    def parts(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """See `MeanOverImages`."""
        found = manifolds(real, fake, self.k).parts
        return {name: found[name] for name in self.names}


class ImprovedPrecisionRecall(_ManifoldMetric):
    """Improved precision and recall (Kynkaanniemi et al. 2019), ``precision`` and ``recall``."""

    names = ("precision", "recall")

    def __init__(self, feature: nn.Module | None = None, k: int = 3, **options: Any) -> None:
        super().__init__(feature, k, **options)


class DensityCoverage(_ManifoldMetric):
    """Density, which may exceed 1, and coverage (Naeem et al. 2020), ``density`` and ``coverage``."""

    names = ("density", "coverage")

    def __init__(self, feature: nn.Module | None = None, k: int = 5, **options: Any) -> None:
        super().__init__(feature, k, **options)
