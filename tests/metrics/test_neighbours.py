"""Neighbours and balls are those of float64, in whatever tiles, order and number they are looked for."""

from itertools import product

import pytest
import torch
from torch import Tensor

from ddpm_hf.metrics import neighbours
from ddpm_hf.metrics.neighbours import kth_nearest, memberships, nearest, squared_distance_to_kth_neighbour

SETS = ("spread", "far from the origin", "two tight clusters", "a lattice", "one point", "few")


def points_of(kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(150, 5, generator=generator, dtype=torch.float64)
    clusters = 50.0 * (torch.arange(150) % 2)[:, None]
    return {
        "spread": noise,
        "far from the origin": noise + 1000,
        "two tight clusters": 1e-4 * noise + clusters,
        "a lattice": noise.round(),
        "one point": torch.full_like(noise, 0.3),
        "few": noise[:7],
    }[kind].float()


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a.double()[:, None] - b.double()[None]).square().sum(dim=2)


@pytest.mark.parametrize(("tile", "pending"), [(32, 2**21), (96, 10), (2_048, 2**21)])
@pytest.mark.parametrize("kind", SETS)
def test_the_kth_neighbour_is_that_of_float64(
    kind: str, tile: int, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "PENDING", pending)
    a, b = points_of(kind, 0), points_of(kind, 1)
    for k in (1, 3, 6):
        found = squared_distance_to_kth_neighbour(a, k, tile)
        assert torch.allclose(found, squared(a, a).sort(dim=1).values[:, k], rtol=1e-14, atol=0)
        distances, indices = kth_nearest(a, b, k, tile)
        assert torch.allclose(distances, squared(a, b).sort(dim=1).values[:, k - 1], rtol=1e-14, atol=0)
        assert torch.allclose(distances, squared(a, b).gather(1, indices[:, None])[:, 0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("tile", [32, 96, 2_048])
@pytest.mark.parametrize("kinds", [*((kind, kind) for kind in SETS), ("few", "spread"), ("one point", "spread")])
def test_balls_hold_what_they_hold_in_float64(kinds: tuple[str, str], tile: int) -> None:
    a, b = (points_of(kind, seed) for seed, kind in enumerate(kinds))
    radii_a, radii_b = (squared(points, points).sort(dim=1).values[:, 3] for points in (a, b))
    of_a, of_b = memberships(a, b, radii_a, radii_b, tile)
    in_b, in_a = squared(a, b) <= radii_b, squared(b, a) <= radii_a
    assert torch.equal(of_a.balls, in_b.sum(dim=1))
    assert torch.equal(of_a.hit, in_b.any(dim=0))
    assert torch.equal(of_b.balls, in_a.sum(dim=1))
    assert torch.equal(of_b.hit, in_a.any(dim=0))


def test_the_nearest_come_nearest_first() -> None:
    a, b = points_of("spread", 0), points_of("far from the origin", 1) - 1000
    assert torch.equal(nearest(a, b, 4), squared(a, b).argsort(dim=1)[:, :4])


def test_numbers_too_large_for_float32_are_compared_too() -> None:
    a, b = (1e25 * points_of("spread", seed).double() for seed in (0, 1))
    for first, second in product((a, b), repeat=2):
        distances, _ = kth_nearest(first, second, 2)
        assert torch.allclose(distances, squared(first, second).sort(dim=1).values[:, 1], rtol=1e-14)
