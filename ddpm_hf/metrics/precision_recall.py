"""Improved precision and recall: what share of the fakes look real, and what share of the reals are covered."""

import torch
from torch import Tensor


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, block_size: int = 1024) -> tuple[float, float]:
    """Improved precision and recall of two sets of features (Kynkaanniemi et al. 2019, eq. 2).

    Each set stands for its manifold: the union of balls around its points, each reaching to the point's k-th nearest
    neighbour in the same set. Precision is the share of the fakes on the manifold of the reals; recall the share of the
    reals on the manifold of the fakes. Both depend on the sizes of the sets: compare values of equally many images.

    Args:
        real: (N, D), any floating type; computed in float64.
        fake: (M, D).
        k: which neighbour bounds the balls; the paper's is 3.
        block_size: rows of the distance matrix held in memory at a time.

    Returns:
        (precision, recall), each in 0 .. 1.

    Raises:
        ValueError: if a set has no more than k images, or the numbers of features differ.
    """
    for name, features in (("real", real), ("fake", fake)):
        if features.ndim != 2 or len(features) <= k:
            raise ValueError(
                f"precision and recall with k = {k} were given {name} features of shape {tuple(features.shape)} and "
                "need (N, D) with N above k; give more images."
            )
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"precision and recall were given {real.shape[1]} and {fake.shape[1]} features an image; "
            "use the same feature network for both sets."
        )
    real, fake = real.double(), fake.double()
    precision = _share_on_manifold(fake, real, k, block_size)
    recall = _share_on_manifold(real, fake, k, block_size)
    return precision, recall


def _share_on_manifold(points: Tensor, support: Tensor, k: int, block_size: int) -> float:
    """Share of the points (N, D) that lie in a ball of the manifold of support (M, D)."""
    # The nearest neighbour of a point in its own set is the point itself, so the k-th is the (k + 1)-th smallest.
    radii = torch.cat(
        [_distances(rows, support).kthvalue(k + 1, dim=1).values for rows in torch.split(support, block_size)]
    )
    inside = torch.cat([(_distances(rows, support) <= radii).any(dim=1) for rows in torch.split(points, block_size)])
    return inside.double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By explicit differences: the expansion |a|^2 - 2ab + |b|^2 loses the distances of near neighbours to rounding.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
