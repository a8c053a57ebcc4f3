"""The Frechet distance between two sets of features: as a function, and as a torchmetrics metric of images."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

logger = logging.getLogger(__name__)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    r"""Frechet distance of the Gaussians with the moments of two sets of features (Heusel et al. 2017).

    .. math:: d^2 = |\mu_a - \mu_b|^2 + \operatorname{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

    In Inception features this is the FID. Covariances are the unbiased ones (divided by N - 1). The fewer the images,
    the larger the distance of equal distributions: only compare distances of equally many.

    Args:
        features_a: (N, D), any floating type; computed in float64.
        features_b: (M, D).

    Raises:
        ValueError: if either has fewer than two images, or the numbers of features differ.
    """
    for features in (features_a, features_b):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"the Frechet distance was given features of shape {tuple(features.shape)} and needs (N, D) with N of "
                "at least 2; give it more images."
            )
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"the Frechet distance was given {features_a.shape[1]} and {features_b.shape[1]} features an image; "
            "use the same feature network for both sets."
        )
    warn_if_few(min(len(features_a), len(features_b)), features_a.shape[1])
    return frechet_distance_of_gaussians(*mean_and_covariance(features_a), *mean_and_covariance(features_b))


def warn_if_few(num_images: int, num_features: int) -> None:
    """Say that a covariance of no more images than features is singular, and the distance mostly chance."""
    if num_images <= num_features:
        logger.warning(
            "the Frechet distance of %d images in %d features: the covariance is singular, and the value is far above "
            "that of more images; take at least several times as many images as features.",
            num_images,
            num_features,
        )


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of features (N, D)."""
    features = features.double()
    num_features = features.shape[1]
    # reshape: torch.cov makes a number of a single feature.
    return features.mean(dim=0), torch.cov(features.T).reshape(num_features, num_features)


def frechet_distance_of_gaussians(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    r"""Squared 2-Wasserstein distance of Gaussians (Dowson & Landau 1982); means (D,), covariances (D, D).

    With :math:`R` the symmetric root of :math:`\Sigma_a`, the product :math:`\Sigma_a \Sigma_b` has the eigenvalues of
    the symmetric :math:`R \Sigma_b R`. So the trace of its root is a sum of real roots, even of singular covariances.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance_a)
    root = eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * trace_of_root
    # Rounding can leave equal Gaussians a hair below zero.
    return max(float(distance), 0.0)


class FrechetDistance(Metric):
    """The Frechet distance of real and fake images as a torchmetrics metric: with Inception features, the FID.

    torchmetrics' own takes the eigenvalues of a product that is not symmetric and drops their imaginary parts; here
    sums are float64 and the answer is real by construction. Processes add their sums.

    Args:
        feature: Network from uint8 images ``(B, C, H, W)`` to features ``(B, D)``, with ``num_features`` D.
        options: As of any torchmetrics metric.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, feature: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self.feature = feature
        size = int(feature.num_features)  # type: ignore[arg-type]
        for side in ("real", "fake"):
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Take in a batch of images, uint8 ``(B, C, H, W)``."""
        features = self.feature(images).double()
        side = "real" if real else "fake"
        for name, value in (("count", len(features)), ("sum", features.sum(0)), ("outer", features.T @ features)):
            setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}") + value)

    def compute(self) -> Tensor:
        """A float64 scalar.

        Raises:
            ValueError: if either side has fewer than two images.
        """
        gaussians = []
        for side in ("real", "fake"):
            count, total, outer = (getattr(self, f"{side}_{name}") for name in ("count", "sum", "outer"))
            if count < 2:
                raise ValueError(f"the Frechet distance was given {int(count)} {side} images and needs at least 2")
            warn_if_few(int(count), len(total))
            mean = total / count
            gaussians += [mean, (outer - count * mean.outer(mean)) / (count - 1)]
        return torch.tensor(frechet_distance_of_gaussians(*gaussians), dtype=torch.float64)
