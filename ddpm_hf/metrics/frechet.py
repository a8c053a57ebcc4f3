"""The Frechet distance between two sets of features: as a function, and as a metric."""

import logging
from typing import Final

import torch
from torch import Tensor

from ddpm_hf.metrics.base import ImageMetric

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
        ValueError: if either has fewer than two images or numbers that are not finite, or the numbers of features
            differ.
    """
    for features in (features_a, features_b):
        if features.ndim != 2 or len(features) < 2 or not features.isfinite().all():
            raise ValueError(
                f"the Frechet distance was given features of shape {tuple(features.shape)} and needs (N, D) of finite "
                "numbers with N of at least 2; look at the images, or give it more."
            )
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"the Frechet distance was given {features_a.shape[1]} and {features_b.shape[1]} features an image; "
            "use the same feature network for both sets."
        )
    for note in notes_if_few(min(len(features_a), len(features_b)), features_a.shape[1]):
        logger.warning("%s", note)
    return frechet_distance_of_gaussians(*mean_and_covariance(features_a), *mean_and_covariance(features_b))


def notes_if_few(num_images: int, num_features: int) -> list[str]:
    """A sentence on a covariance of no more images than features: it is singular, and the distance mostly chance."""
    if num_images > num_features:
        return []
    return [
        f"the Frechet distance of {num_images} images in {num_features} features: the covariance is singular, and the "
        "value is far above that of more images; take at least several times as many images as features"
    ]


def check_gaussian(mean: Tensor, covariance: Tensor, what: str = "the statistics") -> None:
    """See that a mean (D,) and a covariance (D, D) are those of a Gaussian.

    Raises:
        ValueError: their shapes do not fit, a number is not finite, or the matrix is not symmetric or has a negative
            eigenvalue, but for rounding.
    """
    if mean.ndim != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{what} holds mu of {tuple(mean.shape)} and sigma of {tuple(covariance.shape)}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{what} holds numbers that are not finite")
    size = covariance.abs().max()
    if (covariance - covariance.T).abs().max() > ROUNDING * size:
        raise ValueError(f"sigma of {what} is not symmetric, so it is no covariance")
    lowest = float(torch.linalg.eigvalsh(covariance.double())[0])
    if lowest < -ROUNDING * float(size):
        raise ValueError(f"sigma of {what} has the negative eigenvalue {lowest:.3g}, so it is no covariance")


ROUNDING: Final = 1e-3
"""Of other programs' covariances, some of them in float32, relative to the largest entry."""


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of features (N, D)."""
    features = features.double()
    num_features = features.shape[1]
    # reshape: torch.cov makes a number of a single feature.
    return features.mean(dim=0), torch.cov(features.T).reshape(num_features, num_features)


def frechet_distance_of_gaussians(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    r"""Squared 2-Wasserstein distance of Gaussians (Dowson & Landau 1982); means (D,), covariances (D, D).

    With any :math:`R R^T = \Sigma_a`, the product :math:`\Sigma_a \Sigma_b` has the eigenvalues of the symmetric
    :math:`R^T \Sigma_b R`. So the trace of its root is a sum of real roots, even of singular covariances. R is
    Cholesky's factor, or of a singular covariance the root by its eigenvalues, which takes twice as long.

    The decompositions are torch's: of 2,048 features its `eigh` took 2.2 s of one core of an Intel Xeon, and SciPy's
    2.7 s; SciPy's `sqrtm` of the product, which is not symmetric, 18.4 s. The results agreed to 7e-10.
    """
    root, failed = torch.linalg.cholesky_ex(covariance_a)
    if failed:
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance_a)
        root = eigenvectors * eigenvalues.clamp(min=0).sqrt()
    trace_of_root = torch.linalg.eigvalsh(root.T @ (covariance_b @ root)).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * trace_of_root
    # Rounding can leave equal Gaussians a hair below zero.
    return max(float(distance), 0.0)


class FrechetDistance(ImageMetric):
    """The Frechet distance of real and generated images, ``fid``: with Inception features, the FID.

    torchmetrics' own takes the eigenvalues of a product that is not symmetric and drops their imaginary parts; here the
    answer is real by construction. The state is one mean and covariance for each side, whatever the number of images;
    batches and processes are put together by the law of total covariance, in float64.

    Examples:
        >>> metric = FrechetDistance()  # of features; with a feature network, of images
        >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
        >>> metric.update(torch.tensor([[1.0], [3.0]]), real=False)
        >>> round(metric.compute()["fid"].item(), 6)
        1.0
    """

    def summary(self, features: Tensor) -> Tensor:
        """Number of images, mean and covariance, as the rows of a float64 ``(1, 2 + D, D)``."""
        features = features.double()
        mean, covariance = features.mean(dim=0), features.new_zeros(features.shape[1], features.shape[1])
        if len(features) > 1:
            mean, covariance = mean_and_covariance(features)
        return _packed(len(features), mean, covariance)

    def update(self, images: Tensor, real: bool) -> None:
        """See `ImageMetric`."""
        if len(images):
            super().update(images, real)
            side = self.real_features if real else self.fake_features
            side[:] = [_together(torch.cat(side))]

    def update_statistics(self, mean: Tensor, covariance: Tensor) -> None:
        """Take in the mean ``(D,)`` and covariance ``(D, D)`` of all real images, in place of these.

        Raises:
            ValueError: they are those of no Gaussian.
        """
        check_gaussian(mean, covariance)
        self.real_features[:] = [_packed(torch.inf, mean.double(), covariance.double())]
        self._computed = None

    def notes(self) -> list[str]:
        """See `ImageMetric`."""
        fewest = min(float(_together(side)[0, 0, 0]) for side in self._sides())
        return notes_if_few(int(fewest), self._sides()[0].shape[-1])

    def score(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """See `ImageMetric`."""
        gaussians = []
        for name, side in (("generated", fake), ("real", real)):
            count = int(side[:, 0, 0].sum().clamp(max=2))
            if count < 2:
                raise ValueError(f"the Frechet distance was given {count} {name} images and needs at least 2")
            together = _together(side)[0]
            gaussians += [together[1], together[2:]]
        return {"fid": frechet_distance_of_gaussians(*gaussians)}


def _packed(count: float, mean: Tensor, covariance: Tensor) -> Tensor:
    return torch.cat([torch.full_like(mean, count)[None], mean[None], covariance])[None]


def _together(parts: Tensor) -> Tensor:
    r"""One summary ``(1, 2 + D, D)`` of several ``(P, 2 + D, D)``.

    With counts :math:`n_p`, :math:`(n - 1) \Sigma = \sum_p (n_p - 1) \Sigma_p + n_p (\mu_p - \mu)(\mu_p - \mu)^T`.
    """
    if len(parts) == 1:
        return parts
    counts, means, covariances = parts[:, 0, :1], parts[:, 1], parts[:, 2:]
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    away = (means - mean) * counts.sqrt()
    scatter = ((counts - 1)[..., None] * covariances).sum(dim=0) + away.T @ away
    return _packed(float(count), mean, scatter / (count - 1).clamp(min=1))
