"""The scores of generated images, against torchmetrics, prdc and closed forms."""

import math
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ddpm_hf.metrics import (
    DensityCoverage,
    DigitsFeatures,
    FrechetDistance,
    ImprovedPrecisionRecall,
    frechet_distance,
    manifolds,
    precision_recall,
)
from ddpm_hf.metrics.frechet import frechet_distance_of_gaussians, mean_and_covariance
from tests.runs import start_processes_of


def random_features(num_images: int, num_features: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    return scale * torch.randn(num_images, num_features, generator=generator, dtype=torch.float64) @ mix + shift


class Flatten(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (90, 3, 2, 2), dtype=torch.uint8, generator=generator)
    fake = torch.randint(30, 200, (70, 3, 2, 2), dtype=torch.uint8, generator=generator)
    metric = FrechetInceptionDistance(feature=Flatten(), normalize=False, input_img_size=(3, 2, 2)).set_dtype(
        torch.float64
    )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    expected = metric.compute().item()
    assert expected > 1
    assert frechet_distance(Flatten()(real), Flatten()(fake)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_commuting_gaussians_is_that_of_their_axes() -> None:
    """With equal axes it is the sum of (difference of means)^2 + (difference of standard deviations)^2."""
    rotation = torch.linalg.qr(random_features(5, 5, seed=1)).Q
    std_a, std_b = torch.tensor([3.0, 2, 1, 0.5, 0]).double(), torch.tensor([1.0, 4, 0, 0.25, 0]).double()
    mean_a, mean_b = torch.arange(5).double(), torch.ones(5).double()
    covariance_a, covariance_b = (rotation * std.square() @ rotation.T for std in (std_a, std_b))
    expected = ((mean_a - mean_b).square() + (std_a - std_b).square()).sum().item()
    # Roots of eigenvalues that should be zero: rounding of 1e-16 becomes 1e-8.
    assert frechet_distance_of_gaussians(mean_a, covariance_a, mean_b, covariance_b) == pytest.approx(
        expected, abs=1e-6
    )


def test_frechet_distance_of_one_feature_is_in_closed_form() -> None:
    a, b = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[10.0], [11.0]])
    expected = (2 - 10.5) ** 2 + (2 - math.sqrt(0.5)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_zero_at_home_symmetric_and_blind_to_rotation() -> None:
    a, b = random_features(200, 8, seed=2), random_features(150, 8, seed=3, shift=1.0)
    rotation = torch.linalg.qr(random_features(8, 8, seed=4)).Q
    distance = frechet_distance(a, b)
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-10
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-10)


def test_frechet_distance_is_real_and_not_negative_with_fewer_images_than_features() -> None:
    a, b = random_features(5, 64, seed=5), random_features(6, 64, seed=6)
    assert frechet_distance(a, b) > 0
    assert 0 <= frechet_distance(a, a) < 1e-6 * mean_and_covariance(a)[1].trace().item()


def test_float32_features_are_reduced_in_float64() -> None:
    features = random_features(300, 6, seed=7).float()
    far = features + 1e4
    assert frechet_distance(far, far.clone()) < 1e-6
    assert frechet_distance(features, features + 1) == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("tile", [32, 64, 2_048])
def test_precision_recall_density_and_coverage_are_those_of_prdc(k: int, tile: int) -> None:
    real, fake = random_features(120, 4, seed=8), random_features(90, 4, seed=9, scale=0.7, shift=0.3)
    expected = compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
    scores = manifolds(real, fake, k, tile).scores
    assert all(score > 0 for score in scores.values())
    assert scores == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-12)


def brute_force(real: torch.Tensor, fake: torch.Tensor, k: int) -> dict[str, float]:
    """By the definitions, from float64 differences."""

    def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.double()[:, None] - b.double()[None]).square().sum(dim=2)

    around_real = squared(real, real).sort(dim=1).values[:, k]
    around_fake = squared(fake, fake).sort(dim=1).values[:, k]
    in_real, in_fake = squared(fake, real) <= around_real, squared(real, fake) <= around_fake
    return {
        "precision": in_real.any(1).double().mean().item(),
        "recall": in_fake.any(1).double().mean().item(),
        "density": in_real.sum(1).double().mean().item() / k,
        "coverage": in_real.any(0).double().mean().item(),
    }


@pytest.mark.parametrize("tile", [32, 2_048])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
def test_near_ties_are_decided_as_in_float64(tile: int, spread: float) -> None:
    """On a lattice nearly all distances are tied, or part by less than float32 sees beside coordinates of 100."""
    generator = torch.Generator().manual_seed(0)
    lattices = [torch.randint(0, 3, (80, 6), generator=generator).double() for _ in range(2)]
    real, fake = (100 + spread * (points + 1e-5 * random_features(80, 6, seed=20)) for points in lattices)
    assert manifolds(real, fake, 3, tile).scores == pytest.approx(brute_force(real, fake, 3), abs=1e-12)
    exact_real, exact_fake = (100 + spread * points for points in lattices)
    assert manifolds(exact_real, exact_fake, 3, tile).scores == pytest.approx(
        brute_force(exact_real, exact_fake, 3), abs=1e-12
    )


def test_sets_that_are_one_point_many_times_are_no_special_case() -> None:
    same = torch.full((50, 7), 3.25)
    assert manifolds(same, same.clone(), 3).scores == {
        "precision": 1.0, "recall": 1.0, "density": pytest.approx(50 / 3), "coverage": 1.0,
    }  # fmt: skip


def test_the_metrics_are_the_functions_of_all_batches() -> None:
    network = DigitsFeatures.load()
    real, fake = (torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8) for n in (190, 170))
    expected = manifolds(network(real), network(fake), 3).scores
    p_r, d_c, fid = ImprovedPrecisionRecall(network), DensityCoverage(network, k=3), FrechetDistance(network)
    for metric in (p_r, d_c, fid):
        for batch in real.split(32):
            metric.update(batch, real=True)
        for batch in fake.split(17):
            metric.update(batch, real=False)
    assert {**p_r.compute(), **d_c.compute()} == pytest.approx(expected)
    assert fid.compute()["fid"].item() == pytest.approx(frechet_distance(network(real), network(fake)), rel=1e-9)
    p_r.reset()
    without_update = pytest.warns(UserWarning, match="called before the ``update``")  # torchmetrics', beside our error
    with without_update, pytest.raises(ValueError, match="no generated images were given"):
        p_r.compute()
    p_r.update(fake, real=False)
    with pytest.raises(ValueError, match=r"real features of shape \(0, 64\) and need \(N, D\) with N above k"):
        p_r.compute()


def metrics_of_shares() -> None:
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    network = DigitsFeatures.load()
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(2))
    metrics = (ImprovedPrecisionRecall(network), FrechetDistance(network))
    for metric in metrics:
        metric.update(real[rank::2], real=True)
        metric.update(fake[rank * 100 : 100 + rank * 200], real=False)  # unequal shares
    found = {**metrics[0].compute(), **metrics[1].compute()}
    scores = manifolds(network(real), network(fake), 3).scores
    assert found["precision"] == scores["precision"]
    assert found["recall"] == scores["recall"]
    assert found["fid"].item() == pytest.approx(frechet_distance(network(real), network(fake)), rel=1e-9)


def metrics_where_one_has_no_images() -> None:
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    real, fake = random_features(60, 4, seed=1), random_features(50, 4, seed=2).float()
    for kind in (ImprovedPrecisionRecall, FrechetDistance):
        whole, shared = kind(sync_on_compute=False), kind()
        for metric, is_of_all in ((whole, True), (shared, False)):
            if is_of_all or rank == 1:
                metric.update(real, real=True)
            if is_of_all or rank == 0:
                metric.update(fake, real=False)
        assert shared.compute() == whole.compute()


@pytest.mark.parametrize("function", [metrics_of_shares, metrics_where_one_has_no_images])
def test_two_processes_score_as_one(function: Callable[[], None]) -> None:
    start_processes_of(2, function)


def test_frechet_distance_of_a_few_images_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    frechet_distance(random_features(9, 8, seed=1), random_features(9, 8, seed=2))
    assert not caplog.records
    frechet_distance(random_features(8, 8, seed=1), random_features(9, 8, seed=2))
    assert "8 images in 8 features: the covariance is singular" in caplog.text


def test_precision_recall_by_hand() -> None:
    """With k = 1 the reals at 0, 1, 10 reach 1, 1 and 9 far; the fakes at 2, 30, 32 reach 28, 2 and 2 far."""
    real, fake = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[2.0], [30.0], [32.0]])
    precision, recall = precision_recall(real, fake, k=1)
    assert (precision, recall) == pytest.approx((1 / 3, 1.0))
    lost = torch.tensor([[100.0], [101.0], [102.0]])
    assert precision_recall(real, lost, k=1) == (0.0, 0.0)


def test_precision_recall_keeps_near_neighbours_apart_far_from_the_origin() -> None:
    real, fake = random_features(80, 3, seed=10), random_features(80, 3, seed=11, shift=0.5)
    assert precision_recall(real + 1e6, fake + 1e6) == precision_recall(real, fake)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        ((10, 4), (10, 5), "4 and 5"),
        ((3, 4), (10, 4), r"\(3, 4\)"),
        ((10, 4), (3, 4), r"\(3, 4\)"),
        ((10,), (10,), r"\(10,\)"),
    ],
)
def test_precision_recall_names_what_is_wrong(real: tuple[int, ...], fake: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(torch.zeros(real), torch.zeros(fake))


@pytest.mark.parametrize(
    ("a", "b", "message"), [((10, 4), (10, 5), "4 and 5"), ((1, 4), (10, 4), r"\(1, 4\)"), ((10, 4), (10,), r"\(10,\)")]
)
def test_frechet_distance_names_what_is_wrong(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(torch.zeros(a), torch.zeros(b))


def test_digits_features_serve_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(12)
    real, fake = (torch.randint(0, 256, (80, 1, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(2))
    network = DigitsFeatures.load()
    metric = FrechetInceptionDistance(feature=network, input_img_size=(1, 8, 8))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert frechet_distance(network(real), network(fake)) == pytest.approx(metric.compute().item(), rel=1e-4)


def test_digits_features_are_smooth_and_take_only_digits() -> None:
    network = DigitsFeatures.load()
    images = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8)
    features = network(images)
    assert features.shape == (2, DigitsFeatures.num_features)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert not network.training
    nudged = images.clone()
    nudged[0, 0, 4, 4] += 1
    change = (network(nudged) - features).norm(dim=1)
    assert 0 < change[0] < 0.1 * features[0].norm()
    assert change[1] == 0
    for wrong in (images.float(), images.expand(2, 3, 8, 8), images[0]):
        with pytest.raises(ValueError, match=r"takes uint8 \(N, 1, 8, 8\)"):
            network(wrong)


@pytest.mark.parametrize("is_singular", [False, True])
def test_frechet_distance_matches_scipy_on_correlated_gaussians(is_singular: bool) -> None:
    """The textbook form, with the eigenvalues of the product of the covariances, which is not symmetric."""
    from scipy.linalg import eigvals

    features = [random_features(50, 6, seed=seed) for seed in (13, 14)]
    if is_singular:
        features[0][:, 2] = 1.5
    (mean_a, cov_a), (mean_b, cov_b) = (mean_and_covariance(each) for each in features)
    roots = np.sqrt(eigvals(cov_a.numpy() @ cov_b.numpy()).real.clip(min=0))
    expected = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum()
    assert frechet_distance_of_gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected.item(), rel=1e-8)
