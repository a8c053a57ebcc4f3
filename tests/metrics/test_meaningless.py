"""Numbers that would mean nothing: each is refused in one sentence, or a note stands beside it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.metrics import (
    DensityCoverage,
    FrechetDistance,
    ImprovedPrecisionRecall,
    InceptionScore,
    KernelDistance,
    frechet_distance,
    manifolds,
)
from ddpm_hf.metrics.accuracy import ClassAccuracy
from ddpm_hf.metrics.bits_per_dim import Likelihood, bits_per_dim
from ddpm_hf.metrics.evaluation import Evaluation
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.reference import Statistics
from ddpm_hf.metrics.results import markdown_table, plain_table
from tests.networks import TWO_LEVELS


def features(rows: int, columns: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("k", [0, -1, None, 1.5, True, "3"])
@pytest.mark.parametrize("kind", [ImprovedPrecisionRecall, DensityCoverage])
def test_a_neighbour_is_counted_from_one(kind: Any, k: Any) -> None:
    with pytest.raises(ValueError, match=r"^k="):
        kind(k=k)
    with pytest.raises(ValueError, match=r"^k="):
        manifolds(features(8), features(8), k)


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance, ImprovedPrecisionRecall, InceptionScore])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(kind: Any, value: float) -> None:
    with pytest.raises(ValueError, match="features hold numbers that are not finite"):
        kind().update(torch.full((30, 3), value), real=False)
    with pytest.raises(ValueError, match=r"features are of shape \(30,\) and must be \(B, D\)"):
        kind().update(torch.zeros(30), real=False)


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance, ImprovedPrecisionRecall])
def test_features_of_two_networks_are_not_compared(kind: Any) -> None:
    metric = kind()
    metric.update(features(30, 3), real=True)
    metric.update(features(30, 2), real=False)
    with pytest.raises(ValueError, match="real and generated images have 3 and 2 features each"):
        metric.compute()


@pytest.mark.parametrize("number", [0, 1, 10, 19])
def test_the_inception_score_of_few_images_is_no_number(number: int) -> None:
    """Of ten or fewer it was 1, whatever they show."""
    metric = InceptionScore()
    metric.update(features(number), real=False)
    with pytest.raises(ValueError, match=f"was given {number} images with 3 class scores each and needs at least 20"):
        metric.compute()


def test_one_class_gives_no_inception_score() -> None:
    metric = InceptionScore()
    metric.update(features(40, 1), real=False)
    with pytest.raises(ValueError, match="2 classes"):
        metric.compute()


def test_other_arguments_without_meaning() -> None:
    with pytest.raises(ValueError, match="subsets=0 must be 1 or more"):
        KernelDistance(subsets=0)
    with pytest.raises(ValueError, match="draws=1 must be 2 or more"):
        FrechetDistance().errors(features(8), 1)
    with pytest.raises(ValueError, match=r"of finite numbers with N of at least 2"):
        frechet_distance(features(8), features(8) * math.nan)
    with pytest.raises(ValueError, match=r"labels are int64 of shape \(1,\) and must be an integer for each of the 8"):
        ClassAccuracy().update(features(8), real=False, labels=torch.tensor([0]))
    for options in ({"num_steps": 0}, {"num_steps": 1.5}, {"timesteps_per_image": True}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Likelihood(**options)  # type: ignore[arg-type]


ASYMMETRIC = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])


@pytest.mark.parametrize(
    ("mean", "covariance", "said"),
    [
        (torch.zeros(2), ASYMMETRIC, "is not symmetric"),
        (torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "has the negative eigenvalue -1"),
        (torch.zeros(2), -torch.eye(2), "has the negative eigenvalue -1"),
        (torch.zeros(2), torch.eye(3), r"holds mu of \(2,\) and sigma of \(3, 3\)"),
        (torch.zeros(2), torch.full((2, 2), math.nan), "holds numbers that are not finite"),
        (torch.tensor([0.0, math.inf]), torch.eye(2), "holds numbers that are not finite"),
        (torch.zeros(0), torch.zeros(0, 0), r"holds mu of \(0,\)"),
    ],
)
def test_statistics_are_those_of_a_gaussian(
    tmp_path: Path, mean: torch.Tensor, covariance: torch.Tensor, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        FrechetDistance().update_statistics(mean, covariance)
    np.savez(tmp_path / "statistics.npz", mu=mean.numpy(), sigma=covariance.numpy())
    with pytest.raises(ValueError, match=rf"statistics.npz.* {said}|{said}"):
        Statistics.load(tmp_path / "statistics.npz")


def test_statistics_of_few_images_are_singular_and_taken() -> None:
    of_few = torch.cov(features(5, 40).float().T)
    FrechetDistance().update_statistics(torch.zeros(40), of_few)


def test_too_few_images_are_said_beside_the_score() -> None:
    extractor = load_extractor("digits")
    images = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = extractor(images)
    evaluation = Evaluation(["fid", "is"], extractor, found)
    results = evaluation.results({"a": evaluation.score(found)}, {"a": 40})
    assert [note.split(" of ")[0] for note in results.notes] == ["the Frechet distance", "the Inception score"]
    assert results.to_dict()["notes"] == results.notes
    for table in (markdown_table(results), plain_table(results)):
        assert all(f"Note: {note}." in table for note in results.notes)


def test_a_ruined_model_has_no_bits() -> None:
    unet = UNet2DModel(**TWO_LEVELS, sample_size=8)
    torch.nn.init.constant_(unet.conv_out.weight, math.nan)
    pipe = DDPMCustomPipeline(unet, DDIMScheduler(num_train_timesteps=3))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="2 of 2 images need bits that are not a finite number; the weights are not"):
        bits_per_dim(pipe, images)
    with pytest.raises(ValueError, match="1 class_labels came with 2 images"):
        bits_per_dim(pipe, images, class_labels=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("spacing", ["leading", "quadratic", "linspace", "trailing"])
def test_one_step_starts_at_noise_or_is_warned_of(spacing: str, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(1)
    starts_clean = int(scheduler.timesteps[0]) < 500
    assert starts_clean == (spacing == "leading") == ("1 leading steps start at timestep 0 of 1000" in caplog.text)
