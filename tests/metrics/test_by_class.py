"""Scores of each class are those of its images alone."""

import logging

import pytest
import torch

from ddpm_hf.metrics import frechet_distance, precision_recall
from ddpm_hf.metrics.by_class import ClassScores, score_by_class
from ddpm_hf.metrics.evaluation import Score
from ddpm_hf.metrics.extractors import load_extractor

GENERATOR = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(90, 4, generator=GENERATOR), torch.randn(60, 4, generator=GENERATOR) + 0.3
OF_REAL, OF_FAKE = torch.arange(90) % 3, torch.arange(60) % 3
OF_FAKE[:5] = 0  # so that classes differ in size
MEMBERS = {str(of): (torch.where(of == OF_FAKE)[0], torch.where(of == OF_REAL)[0]) for of in range(3)}


@pytest.fixture(scope="module")
def found() -> ClassScores:
    metrics = ["fid", "precision_recall", "is"]
    return score_by_class(metrics, load_extractor("digits"), FAKE, REAL, MEMBERS, bootstrap=5)


def test_each_class_scores_as_its_images_do_alone(found: ClassScores) -> None:
    assert found.names == ["fid", "precision", "recall"]  # the Inception score compares with no real images
    for of in range(3):
        fake, real = FAKE[of == OF_FAKE], REAL[of == OF_REAL]
        scores = {name: score.value for name, score in found.classes[str(of)].items()}
        assert scores["fid"] == pytest.approx(frechet_distance(fake, real), rel=1e-9)
        assert (scores["precision"], scores["recall"]) == precision_recall(real, fake)
    assert len({found.classes[of]["fid"].value for of in "012"}) == 3
    assert found.num_images == {"0": 23, "1": 18, "2": 19}
    assert found.reference_images == {"0": 30, "1": 30, "2": 30}


def test_the_mean_counts_each_class_once_and_has_the_error_of_independent_values() -> None:
    of = {"a": {"fid": Score(1.0, 3.0)}, "b": {"fid": Score(4.0, 4.0)}}
    scores = ClassScores(of, {"a": 1, "b": 9}, {"a": 1, "b": 9}, [])
    assert scores.mean == {"fid": Score(2.5, 2.5)}
    assert scores.to_dict()["scores"] == {"fid": {"a": 1.0, "b": 4.0}}
    assert scores.to_dict()["errors"] == {"fid": {"a": 3.0, "b": 4.0}}
    assert scores.to_dict()["mean_errors"] == {"fid": 2.5}
    without = ClassScores({"a": {"fid": Score(1.0)}}, {"a": 1}, {"a": 1}, [])
    assert without.mean == {"fid": Score(1.0)}
    assert (without.to_dict()["errors"], without.to_dict()["mean_errors"]) == ({}, {})


def test_the_table_has_a_row_for_each_class_and_one_for_the_mean(found: ClassScores) -> None:
    lines = found.table("drawn").splitlines()
    assert lines[:3] == ["Classes of drawn:", "", "| class | images | reference | fid | precision | recall |"]
    assert lines[4].startswith(f"| 0 | 23 | 30 | {found.classes['0']['fid']} |")
    assert lines[7].startswith(f"| mean of the classes | 60 | 90 | {found.mean['fid']} |")


def test_few_images_are_said_once_for_all_classes(caplog: pytest.LogCaptureFixture) -> None:
    wide = torch.randn(90, 64, generator=GENERATOR)
    with caplog.at_level(logging.WARNING):
        scores = score_by_class(["fid"], load_extractor("digits"), wide[:60], wide, MEMBERS)
    assert not caplog.records
    (note,) = scores.notes
    assert note.startswith("in the smallest class, 1: the Frechet distance of 18 images in 64 features")
    assert f"Note: {note}." in scores.table("drawn")
