"""metrics.jsonl: its means, over processes, over a break, and without what a killed run left half written."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ddpm_hf.training.log import MetricsLog, read_log

T = 1000
RATES = ("images_per_second", "data_wait_share", "memory_gib")


def make_log(path: Path, after: int = 0, pending: list[list[float]] | None = None) -> MetricsLog:
    return MetricsLog(
        path, Accelerator(cpu=True), images_per_step=4, num_train_timesteps=T, after=after, pending=pending
    )


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
