"""Distances between all points of two sets of features, exact, in bounded memory, at the speed of a matrix product.

Where a question is decided by distances (who is the k-th neighbour, who lies in whose ball), a float32 product answers
it for almost all pairs; the pairs that lie within its rounding of the answer are computed again in float64, from
differences. So the answers are those of float64.

The product is made a tile at a time, small enough to stay in a processor's cache. Of each tile only the minima over
groups of neighbouring columns, or rows, are looked at (a single quick pass); the few groups whose minimum could matter
are looked into. Within one set, the half of the tiles above the diagonal serves both ways.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 2_048
"""Rows and columns of a tile of distances; a multiple of `GROUP`."""
GROUP = 32
"""How many distances one minimum stands for."""
PENDING = 2**21
"""How many pairs may wait for their exact distances."""


def squared_distance_to_kth_neighbour(points: Tensor, k: int, tile: int = TILE) -> Tensor:
    """From each of the points ``(N, D)`` to its k-th nearest other one, float64 ``(N,)``; N is above k."""
    # A point is its own nearest neighbour, so the k-th other one is the (k + 1)-th of all.
    return _nearest(points, points, k + 1, tile).distances[:, -1]


def kth_nearest(points: Tensor, among: Tensor, k: int, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """The k-th nearest of ``among`` ``(M, D)`` to each of the points ``(N, D)``; M is k or more.

    Returns:
        Its squared distance, float64 ``(N,)``, and its index, int64 ``(N,)``.
    """
    found = _nearest(points, among, k, tile)
    return found.distances[:, -1], found.indices[:, -1]


def nearest(points: Tensor, among: Tensor, count: int) -> Tensor:
    """Indices ``(N, count)`` of the nearest of ``among`` ``(M, D)`` to each of the points ``(N, D)``, nearest first."""
    return _nearest(points, among, count, TILE).indices


@dataclass(frozen=True)
class Membership:
    """Which closed balls hold which points.

    Args:
        balls: int64, in how many balls each point lies.
        hit: bool, whether a ball holds any point.
    """

    balls: Tensor
    hit: Tensor


def memberships(
    a: Tensor, b: Tensor, squared_radii_a: Tensor, squared_radii_b: Tensor, tile: int = TILE
) -> tuple[Membership, Membership]:
    """Which points lie in the balls round the points of the other set.

    Args:
        a: ``(N, D)``.
        b: ``(M, D)``.
        squared_radii_a: float64 ``(N,)`` of the balls round a.
        squared_radii_b: float64 ``(M,)`` of those round b.
        tile: Rows and columns of a tile of distances, a multiple of `GROUP`.

    Returns:
        The points of a in the balls round b, and those of b in the balls round a.
    """
    first = Membership(squared_radii_a.new_zeros(len(a), dtype=torch.int64), squared_radii_b.new_zeros(len(b)).bool())
    second = Membership(torch.zeros_like(first.hit, dtype=torch.int64), torch.zeros_like(first.balls).bool())
    for part in _tiles(a, b, tile):
        for centre, members, radii in ((1, first, squared_radii_b), (0, second, squared_radii_a)):
            centres, points = (a, b) if centre == 0 else (b, a)
            i, j, near, slack = part.at_most(radii, dim=centre)
            near, limit = near.double(), radii[i]
            inside = near <= limit - slack
            unsure = (~inside).nonzero()[:, 0]
            inside[unsure] = _squared_distances(centres, points, i[unsure], j[unsure]) <= limit[unsure]
            members.balls.add_(j[inside].bincount(minlength=len(points)))
            members.hit[i[inside]] = True
    return first, second


def distances(point: Tensor, points: Tensor) -> Tensor:
    """From a point ``(D,)`` to each of the points ``(N, D)``, float64 ``(N,)``."""
    return (points.double() - point.double()).square().sum(dim=1).sqrt()


def _nearest(points: Tensor, among: Tensor, k: int, tile: int) -> "_Nearest":
    """The k nearest of ``among`` ``(M, D)`` to each of the points ``(N, D)``."""
    found = _Nearest(points, among, k)
    for part in _tiles(points, among, tile):
        found.look_at(part, dim=0)
        if points is among and part.rows != part.columns:
            found.look_at(part, dim=1)
    return found.settled()


@dataclass(frozen=True)
class _Tile:
    """Squared distances of some points of one set, the rows, to some of the other, the columns.

    Beyond the ends of the sets, the distances are infinite.

    Args:
        near: The distances ``(R, C)``, nearly; R and C are multiples of `GROUP`.
        rows: Which points the rows are.
        columns: Which points the columns are.
        slacks: By how much a row's distances may be wrong at most, ``(R,)``, and a column's, ``(C,)``.
    """

    near: Tensor
    rows: slice
    columns: slice
    slacks: tuple[Tensor, Tensor]

    def minima(self, dim: int) -> Tensor:
        """The least distance in each group of the other dimension, for each row (dim 0, ``(R, C / GROUP)``) or column
        (dim 1, ``(C, R / GROUP)``)."""
        return self._groups(dim).amin(2) if dim == 0 else self._groups(dim).amin(1).T

    def at_most(self, limits: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pairs that may be as near as a limit for each of all points of one set.

        Args:
            limits: For each point of the rows' set (dim 0), or of the columns'.
            dim: Whose limits they are.

        Returns:
            int64 ``(P,)``, the points that have the limits; their partners; the distances, nearly; by how much these
            may be wrong at most.
        """
        own, other = (self.rows, self.columns) if dim == 0 else (self.columns, self.rows)
        slack = self.slacks[dim]
        highest = torch.zeros_like(slack)
        highest[: len(limits[own])] = limits[own]
        highest = (highest + slack).clamp(max=torch.finfo(slack.dtype).max)  # less than what is beyond the ends
        i, group = (self.minima(dim) <= highest[:, None]).nonzero(as_tuple=True)
        groups = self._groups(dim)
        near = groups[i, group] if dim == 0 else groups[group, :, i]
        hit, place = (near <= highest[i, None]).nonzero(as_tuple=True)
        i, j = i[hit], group[hit] * GROUP + place
        return i + own.start, j + other.start, near[hit, place], slack[i]

    def _groups(self, dim: int) -> Tensor:
        rows, columns = self.near.shape
        return self.near.view((rows, -1, GROUP) if dim == 0 else (-1, GROUP, columns))


class _Nearest:
    """The k nearest of some points to each point, while tiles are looked at.

    Args:
        points: ``(N, D)``.
        among: ``(M, D)``.
        k: At most M.

    Attributes:
        distances: float64 ``(N, k)``, squared, in ascending order: those of the pairs that are settled.
        indices: int64 ``(N, k)``.
    """

    def __init__(self, points: Tensor, among: Tensor, k: int) -> None:
        self.points, self.among, self.k = points, among, k
        self.distances = points.new_full((len(points), k), torch.inf, dtype=torch.float64)
        self.indices = torch.zeros_like(self.distances, dtype=torch.int64)
        self._bounds = self.distances.clone()  # k different distances are no larger than these
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def look_at(self, tile: _Tile, dim: int) -> None:
        """Keep the pairs of a tile that may be among the k nearest of its rows (dim 0) or columns (dim 1)."""
        own = tile.rows if dim == 0 else tile.columns
        count = len(self._bounds[own])
        upper = (tile.minima(dim) + tile.slacks[dim][:, None])[:count]
        bounds = torch.cat([self._bounds[own], upper.topk(min(self.k, upper.shape[1]), largest=False).values], dim=1)
        self._bounds[own] = bounds.topk(self.k, largest=False).values
        # Where k points lie at the distance 0, as in sets of one image many times, no other one is nearer.
        limits = self._bounds[:, -1].masked_fill(self.distances[:, -1] == 0, -torch.inf)
        i, j, near, slack = tile.at_most(limits, dim)
        self._pending.append((i, j, near - slack))
        if sum(len(i) for i, _, _ in self._pending) > PENDING:
            self._settle()

    def settled(self) -> "_Nearest":
        """Itself, after the last tile."""
        if self._pending:
            self._settle()
        return self

    def _settle(self) -> None:
        """Compute the distances of the pairs that are kept, where they still matter."""
        i, j, lower = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        # Where there are many, the k that seem nearest show that most of the others are not.
        order, rank = _ranked(i, lower)
        i, j, lower = i[order], j[order], lower[order].double()
        for first in (rank < self.k, rank >= self.k):
            known = torch.minimum(self._bounds, self.distances)[:, -1][i]
            of = (first & (lower <= known) & (self.distances[:, -1][i] > 0)).nonzero()[:, 0]
            self._merge(i[of], j[of], _squared_distances(self.points, self.among, i[of], j[of]))

    def _merge(self, i: Tensor, j: Tensor, exact: Tensor) -> None:
        points = torch.arange(len(self.distances), device=i.device).repeat_interleave(self.k)
        i, j = torch.cat([points, i]), torch.cat([self.indices.flatten(), j])
        exact = torch.cat([self.distances.flatten(), exact])
        order, rank = _ranked(i, exact)
        kept = order[rank < self.k]
        self.distances, self.indices = (values[kept].view(-1, self.k) for values in (exact, j))


def _ranked(owners: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """An order by owner and, of one owner, by value; and, in that order, how many of the same owner come before."""
    order = values.argsort(stable=True)
    order = order[owners[order].argsort(stable=True)]
    counts = owners.bincount()
    starts = counts.cumsum(0) - counts
    return order, torch.arange(len(order), device=order.device) - starts[owners[order]]


def _tiles(a: Tensor, b: Tensor, tile: int) -> Iterator[_Tile]:
    """The distances of a's points to b's; where both are one set, the tiles below the diagonal are left out."""
    centre = b.mean(dim=0, dtype=torch.float64)  # a common shift changes no distance, and small numbers cancel less
    # A product in TF32 would be wrong by more than the bound below, and float32 ends at 3e38.
    is_small = max(float(points.abs().max()) for points in (a, b)) < 1e15
    is_exact = torch.get_float32_matmul_precision() == "highest"
    dtype = torch.float32 if is_exact and is_small else torch.float64
    (b, length_b, slack_b), is_same = _centred(b, centre, dtype), a is b
    a, length_a, slack_a = (b, length_b, slack_b) if is_same else _centred(a, centre, dtype)
    for start in range(0, len(a), tile):
        rows = slice(start, start + tile)
        for begin in range(start if is_same else 0, len(b), tile):
            columns = slice(begin, begin + tile)
            near = torch.addmm(length_b[None, columns], a[rows], b[columns].T, alpha=-2).add_(length_a[rows, None])
            slacks = slack_a[rows] + slack_b[columns].amax(), slack_b[columns] + slack_a[rows].amax()
            yield _Tile(near, rows, columns, slacks)


def _centred(points: Tensor, centre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The points about a centre, as many at infinity as fill the last group, their squared lengths and slacks."""
    parts = [(part.double() - centre).to(dtype) for part in torch.split(points, 1_024)]
    lengths = torch.cat([part.double().square().sum(dim=1) for part in parts])
    # Each of the D + 4 roundings of |a|^2 - 2ab + |b|^2, of a and b, and of what it is compared with is below eps of
    # (|a| + |b|)^2.
    slacks = 2 * (points.shape[1] + 10) * torch.finfo(dtype).eps * lengths
    more = -len(points) % GROUP
    return (
        torch.cat([*parts, parts[0].new_zeros(more, points.shape[1])]),
        torch.cat([lengths, lengths.new_full((more,), torch.inf)]).to(dtype),
        torch.cat([slacks, slacks.new_zeros(more)]).to(dtype),
    )


def _squared_distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor, block_bytes: int = 2**22) -> Tensor:
    """|a_i - b_j|^2 of the pairs (i, j), float64."""
    size = max(1, block_bytes // (8 * a.shape[1]))
    parts = [
        (a[i[start : start + size]].double() - b[j[start : start + size]].double()).square().sum(dim=1)
        for start in range(0, len(i), size)
    ]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float64)
