"""Disks that are full: what a run can do without ends nothing, and what it cannot is named in one sentence."""

import json
import resource
from errno import ENOSPC
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.training import run
from ddpm_hf.training.log import MetricsLog
from tests.runs import SCORED_BRIEFLY, ended, finished, log_of, tensors_of

FULL = "No space left on device"
SCORED = [*SCORED_BRIEFLY, "--training.steps", "4"]


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(ENOSPC, FULL)


def nothing_left(folder: Path) -> None:
    """No file that is not complete."""
    assert not [path for path in folder.rglob(".*") if path.name != ".gitignore"]


def full_beside_checkpoints() -> None:
    """For pictures, and once the run has begun for what a tracker writes and for the log."""
    Image.Image.save = no_space  # type: ignore[method-assign]
    Figure.savefig = no_space  # type: ignore[method-assign]
    take_over = MetricsLog._take_over

    def taken_over(log: Any, *arguments: Any) -> None:
        take_over(log, *arguments)
        log._path.unlink()
        log._path.mkdir()
        EventFileWriter.add_event = no_space

    MetricsLog._take_over = taken_over  # type: ignore[method-assign]


def test_pictures_trackers_and_log_end_no_run_and_are_told_once(tmp_path: Path) -> None:
    arguments = [*SCORED, "--training.sample_every", "1", "--training.trackers", "[tensorboard]"]
    status, said = ended(tmp_path / "run", *arguments, fault=full_beside_checkpoints)
    assert status == 0, said
    for told in (
        f"pictures in {tmp_path / 'run' / 'samples'}: {tmp_path / 'run' / 'samples' / 'step-00000001.png'} cannot be",
        "the run goes on without the trackers' numbers: ",
        "the run goes on without the trackers' pictures: ",
        "metrics.jsonl cannot be written",
    ):
        assert said.count(told) == 1
    assert said.count("the run goes on without") == 3
    assert tensors_of(tmp_path / "run", 2)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 4
    nothing_left(tmp_path / "run")


def full_for_best_weights() -> None:
    save_pipeline = run.save_pipeline

    def full(folder: Path, *arguments: Any) -> None:
        if folder.name == ".best.partial":
            folder.mkdir()
            no_space()
        save_pipeline(folder, *arguments)

    run.save_pipeline = full


def test_best_weights_that_cannot_be_kept_end_no_run(tmp_path: Path) -> None:
    """Nor are they called the best that are kept."""
    status, said = ended(tmp_path / "run", *SCORED, processes=2, fault=full_for_best_weights)
    assert status == 0, said
    assert said.count("the run goes on without its best weights") == said.count(FULL) == 1
    assert f"{tmp_path / 'run' / 'best'} cannot be written" in said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["best"] is None
    nothing_left(tmp_path / "run")


def full_at_the_end() -> None:
    save_pretrained = DDPMCustomPipeline.save_pretrained

    def full(pipe: DDPMCustomPipeline, folder: Path, **options: Any) -> None:
        if folder.name == "run":
            no_space()
        save_pretrained(pipe, folder, **options)

    DDPMCustomPipeline.save_pretrained = full  # type: ignore[method-assign]


def test_scores_that_cannot_be_saved_are_printed_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, said = ended(folder, *SCORED, processes=2, fault=full_at_the_end)
    assert status == 1
    assert "fid" in said
    assert said.count(": error: ") == said.count(FULL) == 1
    assert "the checkpoint of step 4 is there" in said
    assert "Traceback" not in said
    finished(folder, *SCORED, processes=2)
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 4


def full_for_settings() -> None:
    def full(path: Path, text: str) -> None:
        with run.written_whole(path):
            no_space()

    run.write_text = full


def test_a_run_that_cannot_write_at_its_start_names_the_file_once(tmp_path: Path) -> None:
    status, said = ended(tmp_path / "run", *SCORED, processes=2, fault=full_for_settings)
    assert status == 2
    assert said.count(": error: ") == 1
    assert said.strip().endswith(f"{tmp_path / 'run' / 'config.yaml'} cannot be written: {FULL}")
    assert "Traceback" not in said


def no_large_files() -> None:
    """The limit of the system for a file's size, which weights are above."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    status, said = ended(tmp_path / "run", *SCORED, processes=2, fault=no_large_files)
    assert status == 1
    assert said.count(": error: ") == 1
    assert f"step 2 could not be saved to {tmp_path / 'run' / 'checkpoints' / 'step-2'} (" in said
    assert "Traceback" not in said
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 2]
    nothing_left(tmp_path / "run")
