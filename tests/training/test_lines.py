"""What a run says in a log file: each loss, grid, score and checkpoint, at once and once; or nothing."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ddpm_hf import progress
from ddpm_hf.cli import sample
from ddpm_hf.signals import STOPPED
from tests.runs import SCORED_BRIEFLY, Started, ended, finished

SPEAKING = ["--quiet", "false"]


def soon() -> None:
    progress.SHORTEST = 0.001


def test_each_loss_grid_score_and_checkpoint_has_a_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*SCORED_BRIEFLY, "--training.steps", "4", "--training.sample_every", "2", *SPEAKING]
    status, said = ended(run, *arguments, processes=2, fault=soon)
    assert status == 0, said
    lines = [line.removeprefix("step ") for line in said.splitlines() if re.match(r"step \d+ of 4: ", line)]
    news = [re.sub(r"(?<= )-?[\d.,]+(e[-+]\d+)?(?= images/s| s left| s in all|, |$)", "N", line) for line in lines]
    scores = "fid N, precision N, recall N"
    expected = [
        "1 of 4: loss N, N images/s, N s left",
        "2 of 4: loss N, N images/s, N s left",
        f"2 of 4: grid of samples {run}/samples/step-00000002.png",
        f"2 of 4: {scores}",
        f"2 of 4: the best weights so far {run}/best",
        f"2 of 4: checkpoint {run}/checkpoints/step-2",
        "3 of 4: loss N, N images/s, N s left",
        "4 of 4: loss N, N images/s, N s in all",
        f"4 of 4: grid of samples {run}/samples/step-00000004.png",
        f"4 of 4: checkpoint {run}/checkpoints/step-4",
        f"4 of 4: {scores}",
    ]
    assert [line for line in news if line != f"4 of 4: the best weights so far {run}/best"] == expected
    assert said.count("UNet2DModel with") == 1
    assert said.index("UNet2DModel with") < said.index("step 1 of 4: loss")  # not when a buffer is full
    assert re.search(r"^sampling: \d+ images in ", said, re.MULTILINE)


def test_the_first_loss_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    """Although the first line of metrics.jsonl is due much later."""
    steps = ["--training.steps", "100000", "--training.log_every", "50000"]
    run = Started([*steps, *SPEAKING], tmp_path / "run")
    end = time.monotonic() + 60
    while "step 1 of 100000: loss " not in run.said():
        assert run.processes[0].is_alive(), run.said()
        assert time.monotonic() < end
        time.sleep(0.005)
    assert run.processes[0].is_alive()
    run.send(signal.SIGTERM)
    assert run.wait() == [STOPPED]
    assert re.search(r"^step \d+ of 100000: checkpoint ", run.said(), re.MULTILINE)
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_quiet_run_says_nothing_of_its_steps(tmp_path: Path) -> None:
    _, said = ended(tmp_path / "run", "--training.steps", "2", fault=soon)
    assert "step 2" not in said
    assert "sampling" not in said


@pytest.mark.parametrize("is_quiet", [False, True])
def test_drawing_says_how_far_it_is(tmp_path: Path, is_quiet: bool) -> None:
    model = finished(tmp_path / "model", "--training.steps", "1")
    few: list[Any] = ["--model", model, "--num_images", 4, "--num_inference_steps", 2, "--threads", 1]
    drawing = Started([*few, "--quiet", is_quiet], tmp_path / "samples", 2, soon, sample.main)
    assert drawing.wait() == [0, 0], drawing.said()
    assert len(re.findall(r"^sampling: 4 images in ", drawing.said(), re.MULTILINE)) == (0 if is_quiet else 1)
