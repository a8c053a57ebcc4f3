"""Distances between all points of two sets of features, exact, in bounded memory, at the speed of a matrix product.

Where a question is decided by distances (who is the k-th neighbour, who lies in whose ball), a float32 product answers
it for almost all pairs; the pairs that lie within its rounding of the answer are computed again in float64, from
differences. So the answers are those of float64, whatever the size of the blocks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 2**28
"""Size of one matrix of distances; a few of them are in memory at a time."""


def squared_distance_to_kth_neighbour(points: Tensor, k: int, block_bytes: int = BLOCK_BYTES) -> Tensor:
    """From each of the points ``(N, D)`` to its k-th nearest other one, float64 ``(N,)``; N is above k."""
    # A point is its own nearest neighbour, so the k-th other one is the (k + 1)-th of all.
    return kth_nearest(points, points, k + 1, block_bytes)[0]


def kth_nearest(points: Tensor, among: Tensor, k: int, block_bytes: int = BLOCK_BYTES) -> tuple[Tensor, Tensor]:
    """The k-th nearest of ``among`` ``(M, D)`` to each of the points ``(N, D)``; M is k or more.

    Returns:
        Its squared distance, float64 ``(N,)``, and its index, int64 ``(N,)``.
    """
    distances, indices = [], []
    for rows, near, slack in _blocks(points, among, block_bytes):
        kth = near.topk(k, dim=1, largest=False).values[:, -1:]
        i, j = (near <= kth + 2 * slack.amax(dim=1, keepdim=True)).nonzero(as_tuple=True)
        exact = _squared_distances(points[rows], among, i, j)
        counts = i.bincount(minlength=len(near))
        place = i, torch.arange(len(i), device=i.device) - (counts.cumsum(0) - counts)[i]
        candidates = exact.new_full((len(near), int(counts.max())), torch.inf)
        candidates[place] = exact
        found = candidates.kthvalue(k, dim=1)
        distances.append(found.values)
        indices.append(
            torch.zeros_like(candidates, dtype=torch.int64).index_put(place, j).gather(1, found.indices[:, None])[:, 0]
        )
    return torch.cat(distances), torch.cat(indices)


def balls_and_points(
    points: Tensor, centres: Tensor, squared_radii: Tensor, block_bytes: int = BLOCK_BYTES
) -> tuple[Tensor, Tensor]:
    """Which balls hold which points.

    Args:
        points: ``(N, D)``.
        centres: ``(M, D)`` of closed balls.
        squared_radii: float64 ``(M,)``.
        block_bytes: Size of one matrix of distances.

    Returns:
        int64 ``(N,)``, in how many balls each point lies; bool ``(M,)``, whether a ball holds any point.
    """
    counts = []
    hit = torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for rows, near, slack in _blocks(points, centres, block_bytes):
        radii = squared_radii.to(near.dtype)  # where it decides, its rounding is within the slack
        inside = near <= radii - slack
        i, j = ((near <= radii + slack) & ~inside).nonzero(as_tuple=True)
        inside[i, j] = _squared_distances(points[rows], centres, i, j) <= squared_radii[j]
        counts.append(inside.sum(dim=1))
        hit |= inside.any(dim=0)
    return torch.cat(counts), hit


def nearest(points: Tensor, among: Tensor, count: int, block_bytes: int = BLOCK_BYTES) -> Tensor:
    """Indices ``(N, count)`` of the nearest of ``among`` ``(M, D)`` to each of the points ``(N, D)``, nearest first."""
    found = [near.topk(count, dim=1, largest=False).indices for _, near, _ in _blocks(points, among, block_bytes)]
    return torch.cat(found)


def distances(point: Tensor, points: Tensor) -> Tensor:
    """From a point ``(D,)`` to each of the points ``(N, D)``, float64 ``(N,)``."""
    return (points.double() - point.double()).square().sum(dim=1).sqrt()


def _blocks(a: Tensor, b: Tensor, block_bytes: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of a; their squared distances to all of b, nearly; and by how much these may be wrong at most."""
    centre = b.mean(dim=0, dtype=torch.float64)  # a common shift changes no distance, and small numbers cancel less
    # A product in TF32 would be wrong by more than the bound below.
    dtype = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    (b, length_b), is_same = _centred(b, centre, dtype), a is b
    a, length_a = (b, length_b) if is_same else _centred(a, centre, dtype)
    # Each of the D + 4 roundings of |a|^2 - 2ab + |b|^2, of a and b, and of what it is compared with is below eps of
    # (|a| + |b|)^2.
    error = 2 * (a.shape[1] + 10) * torch.finfo(dtype).eps
    slack_a, slack_b = ((error * length).to(dtype) for length in (length_a, length_b))
    size = max(1, block_bytes // (8 * len(b)))
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        near = torch.addmm(length_b.to(dtype)[None], a[rows], b.T, alpha=-2).add_(length_a[rows].to(dtype)[:, None])
        yield rows, near, slack_a[rows, None] + slack_b[None]


def _centred(points: Tensor, centre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The points about a centre, and their squared lengths in float64, a part at a time."""
    parts = [(part.double() - centre).to(dtype) for part in torch.split(points, 1024)]
    return torch.cat(parts), torch.cat([part.double().square().sum(dim=1) for part in parts])


def _squared_distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor, block_bytes: int = 2**26) -> Tensor:
    """|a_i - b_j|^2 of the pairs (i, j), float64."""
    size = max(1, block_bytes // (8 * a.shape[1]))
    parts = [
        (a[i[start : start + size]].double() - b[j[start : start + size]].double()).square().sum(dim=1)
        for start in range(0, len(i), size)
    ]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float64)
