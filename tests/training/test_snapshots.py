"""Snapshots of averages, and what they give: an average of any length as if it had been tracked."""

import json
import re
import shutil
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf.training import snapshots as module
from ddpm_hf.training.snapshots import (
    Snapshot,
    average_of,
    clear_snapshots,
    copy_snapshots,
    path_of,
    save_snapshot,
    snapshots_in,
)
from tests.runs import ended, finished, log_of, measured, tensors_of

STEPS = 64
STORED, TRACKED = (0.05, 0.1), (0.03, 0.07, 0.15, 0.2)
KEEPING = ["--training.steps", STEPS, "--training.ema_sigma_rels", f"{[*STORED, *TRACKED]}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With averages of six lengths, of which the tests use two to put together the others."""
    return finished(tmp_path_factory.mktemp("averages") / "run", *KEEPING, "--training.learning_rate", "0.01")


def of_stored(run: Path) -> list[Snapshot]:
    return [replace(snapshot, sigma_rels=STORED) for snapshot in snapshots_in(run / "averages")]


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    off = torch.cat([(found[name].double() - tensor.double()).flatten() for name, tensor in expected.items()])
    return float(off.norm() / torch.cat([tensor.double().flatten() for tensor in expected.values()]).norm())


def tracked(run: Path, length: float, step: int = STEPS) -> dict[str, Tensor]:
    stored = load_file(path_of(run / "averages", step))
    return {name.removeprefix(f"{length}/"): stored[name] for name in stored if name.startswith(f"{length}/")}


@pytest.mark.parametrize("length", TRACKED)
def test_an_average_that_is_put_together_is_the_tracked_one(run: Path, length: float) -> None:
    snapshots = of_stored(run)
    assert [snapshot.step for snapshot in snapshots] == [*range(2, STEPS + 1, 2)]
    found = relative(average_of(snapshots, length).tensors(), tracked(run, length))
    assert found < 1e-4
    # None of those that are stored would do.
    assert found < 0.02 * min(relative(tracked(run, stored), tracked(run, length)) for stored in STORED)


def test_and_at_an_earlier_time_too(run: Path) -> None:
    early = [snapshot for snapshot in of_stored(run) if snapshot.step <= 40]
    assert relative(average_of(early, 0.15).tensors(), tracked(run, 0.15, 40)) < 1e-3


def test_what_is_stored_comes_back(run: Path) -> None:
    assert relative(average_of(of_stored(run), 0.1).tensors(), tracked(run, 0.1)) < 1e-6


def test_the_averages_change_nothing_else(run: Path, tmp_path: Path) -> None:
    plain = finished(tmp_path / "run", "--training.steps", STEPS, "--training.learning_rate", "0.01")
    assert not (plain / "averages").exists()
    mine, theirs = tensors_of(plain, STEPS), tensors_of(run, STEPS)
    beside = {name for name in theirs if name.startswith("averages.safetensors/sigma_rel ")}
    assert mine.keys() == theirs.keys() - beside
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert measured(plain) == measured(run)


def test_a_length_that_cannot_be_had_is_refused_with_those_that_can(run: Path) -> None:
    sentence = (
        "an average of sigma_rel 0.005 cannot be put together from 32 snapshot(s) of sigma_rel 0.05 and 0.1: its "
        "profile would be wrong by 42%, and 10% is allowed; they give lengths from 0.014 to 0.25"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        average_of(of_stored(run), 0.005)
    with pytest.raises(ValueError, match=r"from 1 snapshot.*by 60%.*give lengths from 0\.038 to 0\.12$"):
        average_of(of_stored(run)[-1:], 0.2)


@pytest.mark.parametrize("content", [b"", b"not a snapshot", None])
def test_a_damaged_snapshot_is_named(run: Path, tmp_path: Path, content: bytes | None) -> None:
    shutil.copytree(run / "averages", tmp_path / "averages")
    path = path_of(tmp_path / "averages", 32)
    if content is None:
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step-32\.safetensors is damaged, or no snapshot of averages \("):
        snapshots_in(tmp_path / "averages")


def test_a_snapshot_that_is_cut_off_or_of_another_network_is_named(tmp_path: Path) -> None:
    for step, size in ((1, 3), (2, 3), (3, 4)):
        save_snapshot(tmp_path, step, step, {0.1: {"weight": torch.ones(size)}})
    with pytest.raises(ValueError, match=r"step-3\.safetensors is of another network than .*step-1\.safetensors"):
        average_of(snapshots_in(tmp_path), 0.1).tensors()
    found = snapshots_in(tmp_path)[:2]
    path_of(tmp_path, 2).write_bytes(path_of(tmp_path, 2).read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"step-2\.safetensors is damaged"):
        average_of(found, 0.1).tensors()


def test_snapshots_are_of_what_a_pipeline_has(tmp_path: Path) -> None:
    averages = {0.05: {"conv_in.weight": torch.ones(2), "augment_embedding.weight": torch.zeros(2)}}
    save_snapshot(tmp_path, 7, 5, averages)
    [found] = snapshots_in(tmp_path)
    assert found == Snapshot(path_of(tmp_path, 7), 7, 5, (0.05,))
    assert [*load_file(found.path)] == ["0.05/conv_in.weight"]


def test_a_run_that_branches_off_takes_the_snapshots_along(tmp_path: Path) -> None:
    arguments = [*KEEPING, "--training.checkpoint_every", 16]
    whole = finished(tmp_path / "whole", *arguments)
    checkpoint = whole / "checkpoints" / "step-48"
    kept = {path.name: path.read_bytes() for path in (whole / "averages").iterdir()}
    for path in (whole / "checkpoints").glob("step-64*"):
        shutil.rmtree(path)
    branch = finished(tmp_path / "branch", *arguments, "--resume", checkpoint)
    assert {path.name: path.read_bytes() for path in (branch / "averages").iterdir()} == kept
    # In the same folder nothing of an earlier run stays.
    anew = ["--training.steps", 4, "--training.ema_sigma_rels", "[0.1]", "--resume", "never"]
    assert sorted(path.name for path in (finished(branch, *anew) / "averages").iterdir()) == [
        f"step-{step}.safetensors" for step in range(1, 5)
    ]


def test_only_snapshots_are_copied_and_removed(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save_snapshot(tmp_path / "a", step, step, {0.1: {"weight": torch.full((2,), float(step))}})
    (tmp_path / "a" / "sigma_rel-0.1").mkdir()
    copy_snapshots(tmp_path / "a", tmp_path / "b", until=4)
    assert [snapshot.step for snapshot in snapshots_in(tmp_path / "b")] == [2, 4]
    clear_snapshots(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["sigma_rel-0.1"]


def full_for_snapshots() -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(ENOSPC, "No space left on device")

    module.save_file = full


def test_a_snapshot_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    status, said = ended(tmp_path / "run", "--training.steps", 4, *KEEPING[2:], processes=2, fault=full_for_snapshots)
    assert status == 0, said
    assert said.count("the run goes on without a snapshot of averages: ") == 1
    assert log_of(tmp_path / "run")[-1]["step"] == 4
    assert not list((tmp_path / "run" / "averages").iterdir())


def test_settings_of_other_lengths_are_another_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "--training.steps", 4, "--training.ema_sigma_rels", "[0.1]")
    status, said = ended(run, "--training.steps", 4, "--training.ema_sigma_rels", "[0.05]")
    assert status == 2
    assert "was trained with other settings (training.ema_sigma_rels [0.1] -> [0.05])" in said


def test_two_processes_keep_what_one_does(run: Path, tmp_path: Path) -> None:
    """To rounding, as all else of such runs."""
    two = finished(tmp_path / "run", *KEEPING, "--training.learning_rate", "0.01", processes=2)
    length, step = 0.1, STEPS
    assert relative(tracked(two, length, step), tracked(run, length, step)) < 1e-4
    assert json.dumps([s.updates for s in of_stored(two)]) == json.dumps([s.updates for s in of_stored(run)])


def test_factors_are_those_of_the_files_in_their_order(tmp_path: Path) -> None:
    """Whatever the weights are: the sum is that of float64, rounded once."""
    rng = np.random.default_rng(0)
    values = {(step, length): rng.normal(size=5) for step in (10, 20, 30) for length in (0.05, 0.1)}
    for step in (10, 20, 30):
        named = {length: {"w": torch.tensor(values[step, length], dtype=torch.float32)} for length in (0.05, 0.1)}
        save_snapshot(tmp_path, step, step, named)
    average = average_of(snapshots_in(tmp_path), 0.08)
    keys = [(step, length) for step in (10, 20, 30) for length in (0.05, 0.1)]
    expected = sum(f * values[key].astype(np.float32) for f, key in zip(average.factors, keys, strict=True))
    np.testing.assert_allclose(average.tensors()["w"].numpy(), np.asarray(expected, dtype=np.float32), rtol=2e-7)
