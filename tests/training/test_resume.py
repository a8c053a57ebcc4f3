"""A run that is killed, stopped, moved to other processes or cut otherwise ends where an unbroken one does."""

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ddpm_hf.files
import ddpm_hf.training.checkpoints
from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.data import rows as row_reader
from ddpm_hf.data.loading import DIGITS
from tests.runs import Started, ended, finished, log_of, measured, tensors_of

STEPS = 40
# What could go wrong in a resumed run: dropout, flips, several averages and their snapshots, a log line that spans the
# checkpoint.
WORK = [
    *("--training.steps", STEPS, "--training.checkpoint_every", 7, "--model.dropout", "0.1"),
    *("--data.random_flip", "true", "--training.ema_decay", "[0.99,0.5]"),
    *("--training.ema_sigma_rels", "[0.05,0.2]", "--training.ema_snapshot_every", 6),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("unbroken") / "run", *WORK)


def assert_same_run(run: Path, other: Path) -> None:
    mine, theirs = tensors_of(run, STEPS), tensors_of(other, STEPS)
    assert mine.keys() == theirs.keys()
    assert sum("exp_avg" in name for name in mine) > 0
    assert sum("ema0_5" in name for name in mine) > 0
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert measured(run) == measured(other)
    assert sum("sigma_rel 0.2/" in name for name in mine) > 0
    snapshots = [f"averages/step-{step}.safetensors" for step in (6, 12, 18, 24, 30, 36, STEPS)]
    assert {path.name for path in (run / "averages").iterdir()} == {Path(name).name for name in snapshots}
    for file in ("unet/diffusion_pytorch_model.safetensors", "samples/grid.png", *snapshots):
        assert (run / file).read_bytes() == (other / file).read_bytes()


def kill_in_a_save() -> None:
    """At the second checkpoint, with half of the optimizer's state on the disk."""
    save, calls = ddpm_hf.training.checkpoints.save_file, []

    def save_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save(tensors, path)
        calls.append(path)
        if len(calls) == 5:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    ddpm_hf.training.checkpoints.save_file = save_half  # type: ignore[assignment]


def kill_before_the_name() -> None:
    """With a checkpoint complete but for its name."""

    def no_name(partial: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    ddpm_hf.files.replace_folder = no_name


def kill_in_a_removal() -> None:
    """With half of an old checkpoint removed."""

    def half(path: Path) -> None:
        next(file for file in path.rglob("*") if file.is_file()).unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    shutil.rmtree = half  # type: ignore[assignment]


def kill_in_the_cache() -> None:
    """With some hundred images decoded."""
    decode, calls = row_reader.decode, []

    def decode_some(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 300:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(*arguments)

    row_reader.decode = decode_some


def test_ten_kills_change_no_bit(unbroken: Path, tmp_path: Path) -> None:
    run, chance = tmp_path / "run", random.Random(0)
    arguments = [*WORK, "--data.cache_dir", tmp_path / "cache"]
    for fault in (kill_in_the_cache, kill_in_the_cache, kill_in_a_save, kill_before_the_name, kill_in_a_removal):
        assert ended(run, *arguments, fault=fault)[0] == -signal.SIGKILL
    for step in (9, 15, 21, 27, 36):
        started = Started(arguments, run)
        started.wait_for_step(step)
        time.sleep(chance.random() * 0.1)  # some steps
        started.send(signal.SIGKILL)
        assert started.wait() == [-signal.SIGKILL]
    assert_same_run(finished(run, *arguments), unbroken)
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_so(unbroken: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    for step in (6, 18):
        started = Started(WORK, run)
        started.wait_for_step(step)
        started.send(number)
        assert started.wait() == [75]
        saved = max(int(path.name.partition("-")[2]) for path in (run / "checkpoints").iterdir())
        assert step <= saved < STEPS
        assert f"stopped by a signal; step {saved} of {STEPS} is saved" in started.said()
    assert_same_run(finished(run, *WORK), unbroken)


def test_a_signal_to_one_process_stops_both(tmp_path: Path) -> None:
    started = Started(["--training.steps", 5000], tmp_path / "run", processes=2)
    started.wait_for_step(3)
    started.send(signal.SIGTERM, rank=1)
    assert started.wait() == [75, 75]
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in log_of(run)]


def test_any_cut_of_the_batch_gives_the_same_curve(tmp_path: Path) -> None:
    arguments = ["--training.steps", 50, "--training.log_every", 1, "--data.random_flip", "true"]
    whole = finished(tmp_path / "1x1", *arguments)
    assert len(losses_of(whole)) == 50
    for processes, passes in ((1, 4), (2, 2), (4, 1)):
        cut = finished(
            tmp_path / f"{processes}x{passes}",
            *arguments,
            "--training.gradient_accumulation_steps",
            passes,
            processes=processes,
        )
        assert losses_of(cut) == pytest.approx(losses_of(whole), rel=1e-5)


def test_a_run_goes_on_with_other_processes_and_back(tmp_path: Path) -> None:
    arguments = ["--training.log_every", 1, "--training.learning_rate", "1e-3", "--training.lr_schedule", "constant"]
    whole = finished(tmp_path / "whole", *arguments, "--training.steps", 45)
    for steps, processes in ((15, 1), (30, 2), (45, 1)):
        finished(tmp_path / "moved", *arguments, "--training.steps", steps, processes=processes)
    assert losses_of(tmp_path / "moved") == pytest.approx(losses_of(whole), rel=1e-5)
    history = json.loads((tmp_path / "moved" / "metrics.json").read_text())["history"]
    assert [entry["environment"]["processes"] for entry in history] == [[1, 2], [2, 1]]
    assert [entry["settings"]["training.steps"] for entry in history] == [[15, 30], [30, 45]]


@pytest.fixture
def stopped(unbroken: Path, tmp_path: Path) -> Path:
    """A copy of the unbroken run."""
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def test_a_finished_run_trains_no_more_and_clears_up(stopped: Path, unbroken: Path) -> None:
    left = [stopped / ".best.partial", stopped / "samples" / ".grid.png.7.partial"]
    for path in left:
        path.touch()
    before = (stopped / "checkpoints" / f"step-{STEPS}" / "training" / "state.json").read_bytes()
    assert_same_run(finished(stopped, *WORK), unbroken)
    assert (stopped / "checkpoints" / f"step-{STEPS}" / "training" / "state.json").read_bytes() == before
    assert not any(path.exists() for path in left)


def test_a_finished_run_that_is_scored_again_has_its_scores_once(tmp_path: Path) -> None:
    arguments = ["--training.steps", 4, "--evaluation.every", 2]
    run = finished(tmp_path / "run", *arguments)
    before = log_of(run)
    for _ in range(2):
        finished(run, *arguments)
        assert log_of(run) == before
        assert "is not as it was" not in run.with_name("run.said").read_text()


def test_broken_checkpoints_are_named_and_left_aside(stopped: Path, unbroken: Path) -> None:
    newest, middle = (stopped / "checkpoints" / f"step-{step}" for step in (STEPS, 35))
    (newest / "training" / "state.json").unlink()
    os.truncate(middle / "unet" / "diffusion_pytorch_model.safetensors", 100)
    status, said = ended(stopped, *WORK)
    assert status == 0
    assert f"{newest} is damaged (its training/state.json is missing or cannot be read)" in said
    assert f"{middle} is damaged (its unet/diffusion_pytorch_model.safetensors has 100 bytes of" in said
    assert_same_run(stopped, unbroken)


def test_a_run_with_another_meaning_is_refused_with_the_difference(stopped: Path) -> None:
    status, said = ended(stopped, *WORK, "--training.learning_rate", "0.1", "--model.dropout", "0")
    assert status == 2
    assert "(model.dropout 0.1 -> 0.0, training.learning_rate 0.008 -> 0.1); go on with those, or start" in said
    assert said.count("\n") == 1
    status, said = ended(stopped, *WORK, "--training.steps", "50")  # a cosine that would be another one from the start
    assert (status, "training.steps 40 -> 50" in said) == (2, True)


def test_the_same_images_elsewhere_are_the_same_data_and_others_are_not(tmp_path: Path) -> None:
    unscored = [
        "--config",
        "configs/train/digits.yaml",
        "--training.lr_schedule",
        "constant",
        "--evaluation.extractor",
        "null",
    ]
    for folder, source in (("mine", "test"), ("theirs", "test"), ("others", "train")):
        (tmp_path / folder).mkdir()
        shutil.copy(DIGITS / f"{source}.parquet", tmp_path / folder / "digits.parquet")
    run = finished(
        tmp_path / "run", "--training.steps", 4, *unscored, "--data.name", tmp_path / "mine" / "digits.parquet"
    )
    more = ["--training.steps", 6, *unscored, "--data.name"]
    finished(run, *more, tmp_path / "theirs" / "digits.parquet")
    status, said = ended(run, *more, tmp_path / "others" / "digits.parquet")
    assert (status, "was trained on other images than" in said) == (2, True), said


def test_harmless_changes_are_allowed_and_recorded(stopped: Path, unbroken: Path) -> None:
    shutil.rmtree(stopped / "checkpoints" / f"step-{STEPS}")
    finished(stopped, *WORK, "--training.gradient_accumulation_steps", 2, "--evaluation.num_inference_steps", 4)
    entry = json.loads((stopped / "metrics.json").read_text())["history"][0]
    assert entry["step"] == 35
    changed = {"training.gradient_accumulation_steps": [1, 2], "evaluation.num_inference_steps": [2, 4]}
    assert entry["settings"] == {**changed, "output_dir": [str(unbroken), str(stopped)]}


def test_never_starts_anew_and_a_path_goes_on_elsewhere(stopped: Path, unbroken: Path, tmp_path: Path) -> None:
    first = stopped / "checkpoints" / "step-28"
    branch = finished(tmp_path / "branch", *WORK, "--resume", first)
    assert {name: t.sum() for name, t in tensors_of(branch, STEPS).items()} == {
        name: t.sum() for name, t in tensors_of(unbroken, STEPS).items()
    }
    assert ended(stopped, *WORK, "--resume", first)[1].count("holds newer checkpoints than") == 1
    assert "is not a complete checkpoint (there is no such folder)" in ended(stopped, *WORK, "--resume", "gone")[1]
    finished(stopped, *WORK, "--resume", "never", "--training.steps", 8)
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {"step-7", "step-8"}
    assert [line["step"] for line in log_of(stopped)] == [3, 6, 8]


def test_a_checkpoint_is_a_pipeline_folder(unbroken: Path) -> None:
    kept = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert kept == ["step-28", "step-35", "step-40"]  # the three that the limit leaves
    last = DDPMCustomPipeline.from_pretrained(unbroken / "checkpoints" / "step-40").unet.state_dict()
    final = DDPMCustomPipeline.from_pretrained(unbroken).unet.state_dict()
    other = DDPMCustomPipeline.from_pretrained(unbroken, variant="ema0_5").unet.state_dict()
    assert all(torch.equal(last[name], final[name]) for name in final)
    assert not all(torch.equal(other[name], final[name]) for name in final)


def no_space() -> None:
    """The disk takes no file over 100,000 bytes: enough for the first files of a checkpoint, not for all."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path, processes: int) -> None:
    finished(tmp_path / "run", "--training.steps", 6, "--training.lr_schedule", "constant")
    status, said = ended(
        tmp_path / "run",
        "--training.steps",
        9,
        "--training.lr_schedule",
        "constant",
        processes=processes,
        fault=no_space,
    )
    assert status == 1
    assert "step 9 could not be saved to " in said
    assert "intact there: step-6; mend the cause and start again" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-6"]
