"""metrics.jsonl: its means, over processes, over a break, and without what a killed run left half written."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ddpm_hf.training.log import MetricsLog, read_log

T = 1000
RATES = ("images_per_second", "data_wait_share", "memory_gib")


def make_log(
    path: Path, after: int = 0, pending: list[list[float]] | None = None, written: str | None = None
) -> MetricsLog:
    return MetricsLog(path, Accelerator(cpu=True), 4, T, after=after, pending=pending, written=written)


def test_a_line_holds_means_over_the_steps_since_the_last(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("an earlier run\n")
    log = make_log(path)
    losses, t = torch.rand(3, 4, generator=rng), torch.randint(T, (3, 4), generator=rng)
    for i in range(2):
        log.add(losses[i], t[i], grad_norm=float(i))
    log.write(2, seconds_waited=0.0, learning_rate=0.1)
    log.add(losses[2], t[2], grad_norm=5.0)
    log.write(3, seconds_waited=0.0, learning_rate=0.2)

    first, second = read_log(path)
    assert first["step"] == 2
    assert first["loss"] == pytest.approx(float(losses[:2].mean()))
    assert (first["grad_norm"], first["learning_rate"], first["skipped_steps"]) == (0.5, 0.1, 0)
    assert (second["loss"], second["grad_norm"]) == (pytest.approx(float(losses[2].mean())), 5.0)
    for quarter in range(4):
        inside = (t[:2] >= quarter * T // 4) & (t[:2] < (quarter + 1) * T // 4)
        expected = float(losses[:2][inside].mean()) if inside.any() else None
        assert first[f"loss_quarter_{quarter + 1}"] == (expected and pytest.approx(expected))
    assert first["images_per_second"] > 0
    assert 0.05 < first["memory_gib"] < 50


def test_a_skipped_step_counts_and_its_loss_does_not(tmp_path: Path) -> None:
    log = make_log(tmp_path / "metrics.jsonl")
    t = torch.tensor([0, 999])
    log.add(torch.tensor([1.0, 3.0]), t, grad_norm=2.0)
    log.add(torch.tensor([float("nan"), 1.0]), t, grad_norm=None)
    line = log.write(2, seconds_waited=0.0)
    assert (line["loss"], line["grad_norm"], line["skipped_steps"]) == (2.0, 2.0, 1)
    log.add(torch.tensor([float("nan"), 1.0]), t, grad_norm=None)
    line = log.write(3, seconds_waited=0.0)
    assert (line["loss"], line["loss_quarter_1"], line["skipped_steps"]) == (None, None, 1)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()  # which is no JSON


def test_a_log_that_is_broken_off_goes_on_to_the_same_lines(tmp_path: Path, rng: torch.Generator) -> None:
    losses, t = torch.rand(6, 4, generator=rng), torch.randint(T, (6, 4), generator=rng)
    whole = make_log(tmp_path / "whole")
    for i in range(6):
        whole.add(losses[i], t[i], 1.0 + i)
        if i % 3 == 2:
            whole.write(i + 1, seconds_waited=0.0)

    path = tmp_path / "broken"
    log = make_log(path)
    for i in range(4):
        log.add(losses[i], t[i], 1.0 + i)
        if i == 2:
            log.write(3, seconds_waited=0.0)
    state = json.loads(json.dumps(log.state_dict()))
    with path.open("a") as file:
        file.write('{"step": 6, "loss": 7.0}\n{"step": 7, "lo')  # the run went on after the checkpoint, and was killed
    log = make_log(path, after=4, pending=state)
    for i in (4, 5):
        log.add(losses[i], t[i], 1.0 + i)
    log.write(6, seconds_waited=0.0)
    lines = [
        [{k: v for k, v in line.items() if k not in RATES} for line in read_log(p)] for p in (tmp_path / "whole", path)
    ]
    assert lines[0] == lines[1]


def test_a_damaged_line_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}).encode() for step in range(1, 7)]
    lines[2] = lines[2][:-1]
    lines[3] = b"\xff" + lines[3]
    lines[4] = b"[5]"
    path.write_bytes(b"\n".join([*lines, b'{"step": 7, "lo']))  # the last one is of a killed process
    notes: list[str] = []
    assert [line["step"] for line in read_log(path, notes)] == [1, 2, 6]
    assert notes == [f"line {number} of {path} cannot be read and is left out" for number in (3, 4, 5)]
    log = make_log(path, after=6)
    assert log.notes == notes
    assert [line["step"] for line in read_log(path)] == [1, 2, 6]


def test_a_changed_number_is_told(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "metrics.jsonl"
    log = make_log(path)
    for step in (1, 2):
        log.add(torch.rand(4, generator=rng), torch.arange(4), 1.0)
        log.write(step, seconds_waited=0.0)
    assert make_log(path, after=2, written=log.hash).notes == []
    path.write_text(path.read_text().replace('"grad_norm": 1.0', '"grad_norm": 2.0', 1))
    assert make_log(path, after=2, written=log.hash).notes == [
        f"{path} is not as it was at step 2: lines are missing or were changed"
    ]


def test_a_full_disk_ends_no_training_and_loses_no_line(
    tmp_path: Path, rng: torch.Generator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = make_log(path)
    log.write_line({"step": 1})
    path.rename(tmp_path / "aside")
    path.mkdir()  # whatever keeps a file from being written
    log.write_line({"step": 2})
    log.write_line({"step": 3})
    assert capsys.readouterr().err.count("its lines wait in memory") == 1
    path.rmdir()
    (tmp_path / "aside").rename(path)
    with path.open("a") as file:
        file.write('{"step": 2, "los')  # what came through before the disk was full
    log.write_line({"step": 4})
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4]
    assert log.hash == make_log(path, after=4).hash
