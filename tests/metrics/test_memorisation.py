"""Copies are told from new images."""

import pytest
import torch
from scipy.spatial.distance import cdist

from ddpm_hf.metrics import Authenticity
from ddpm_hf.metrics.memorisation import SUSPICIOUS, authentic, copying_test
from ddpm_hf.metrics.neighbours import kth_nearest


def points(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_authenticity_is_that_of_its_definition() -> None:
    train, fake = points(80, 0), points(60, 1)
    fake[:20] = train[:20] + 0.05 * points(20, 2)
    to_train, among_train = cdist(fake.double(), train.double()), cdist(train.double(), train.double())
    expected = []
    for row in to_train:
        neighbour = row.argmin()
        expected.append(row[neighbour] > sorted(among_train[neighbour])[1])
    found = authentic(train, fake)
    assert found.tolist() == expected
    assert not found[:20].any()
    metric = Authenticity()
    metric.update(train, real=True)
    metric.update(fake, real=False)
    assert metric.compute()["authenticity"].item() == pytest.approx(sum(expected) / 60, abs=1e-15)


def test_copies_of_any_scale_have_no_authenticity() -> None:
    """Exact copies lie at the distance 0, which float32 products far from the origin do not show."""
    train = points(50, 0) + 1000
    assert not authentic(train, train[:30].clone()).any()


def test_too_few_real_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 2"):
        authentic(points(1, 0), points(5, 1))


@pytest.mark.parametrize("tile", [32, 2_048])
def test_the_kth_nearest_is_that_of_scipy(tile: int) -> None:
    a, b = points(40, 0).double() + 50, points(30, 1).double() + 50
    expected = torch.from_numpy(cdist(a, b)).sort(dim=1)
    for k in (1, 3, 30):
        distances, indices = kth_nearest(a.float(), b.float(), k, tile)
        assert torch.equal(indices, expected.indices[:, k - 1])
        assert torch.allclose(distances.sqrt(), expected.values[:, k - 1], rtol=1e-5)


def test_new_samples_pass_and_copies_are_caught() -> None:
    train, held_out = points(300, 0), points(200, 1)
    new = copying_test(train, points(200, 2), held_out)
    assert new.p_value > 0.05
    assert 0.4 < new.share_nearer < 0.6
    assert "no nearer" in str(new)
    copies = train[:200] + 0.01 * points(200, 3)
    caught = copying_test(train, copies, held_out)
    assert caught.p_value < 1e-30
    assert caught.share_nearer > 0.95
    assert caught.samples < 0.1 * caught.held_out
    assert "nearer to training images than" in str(caught)


def test_the_p_value_is_one_that_chance_keeps() -> None:
    """Of true draws, as many fall below a level as it says, so that no honest model is called a copyist."""
    p_values = []
    for seed in range(200):
        train, samples, held_out = points(450, seed).split([150, 150, 150])
        p_values.append(copying_test(train, samples, held_out).p_value)
    below = torch.tensor([sum(p < level for p in p_values) / 200 for level in (0.1, 0.5, SUSPICIOUS)])
    # The test sees pairs as independent, which a common set of neighbours makes them less than.
    assert below[0] < 0.25
    assert 0.3 < below[1] < 0.7
    assert below[2] < 0.03
