"""The Frechet distance between two sets of features."""

import torch
from torch import Tensor


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
    return frechet_distance_of_gaussians(*mean_and_covariance(features_a), *mean_and_covariance(features_b))


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
