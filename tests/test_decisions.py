"""Several processes do the same, though each may find the disk or the network in another state than the others do."""

import os
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from ddpm_hf import manifest
from ddpm_hf.cli import drawing, evaluate, sample
from ddpm_hf.files import WriteError
from ddpm_hf.launch import decided_by_main, each_on_its_own
from ddpm_hf.metrics import reference
from ddpm_hf.sampling.image_files import ImageFolder
from ddpm_hf.training import checkpoints, downloads, setup
from tests.fuzz.files_targets import tiny_pipeline
from tests.runs import SCORED_BRIEFLY, Started, ended, start_processes_of


def decide(accelerator: Accelerator) -> None:
    rank = accelerator.process_index
    assert decided_by_main(accelerator, lambda: f"seen by {rank}") == "seen by 0"

    def fail() -> None:
        assert rank == 0
        raise WriteError(ENOSPC, "full", "a")

    with pytest.raises(WriteError, match="a cannot be written: full"):
        decided_by_main(accelerator, fail)


def work_apart(accelerator: Accelerator) -> None:
    rank, done = accelerator.process_index, []
    each_on_its_own(accelerator, lambda: done.append(rank))
    assert done == [rank]

    def fail_on_the_second() -> None:
        if rank == 1:
            raise ValueError("of process 1")

    with pytest.raises(ValueError, match="of process 1"):
        each_on_its_own(accelerator, fail_on_the_second)


def of_two() -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    decide(accelerator)
    work_apart(accelerator)
    accelerator.end_training()


def test_the_main_process_decides_for_all_and_all_hear_of_a_failure() -> None:
    start_processes_of(2, of_two)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("another process than the main one has looked")


def only_the_main_process_looks() -> None:
    """As though, to the others, everything were as it was before another run wrote its files."""
    if os.environ["RANK"] != "0":
        ImageFolder.missing = never  # type: ignore[method-assign]
        for module, name in (
            *((manifest, "read_manifest"), (manifest, "check_same_settings"), (drawing, "check_same_settings")),
            *((downloads, "check_local_folder"), (reference, "_read_features"), (setup, "download_checkpoint")),
            (checkpoints, "what_is_broken"),
        ):
            assert hasattr(module, name)
            setattr(module, name, never)


def test_only_the_main_process_looks_at_what_another_run_may_change(tmp_path: Path) -> None:
    model = tiny_pipeline(tmp_path / "model")
    words = ["--model", model, "--num_images", 6, "--num_inference_steps", 2, "--batch_size", 2, "--threads", 1]
    words += ["--timestep_spacing", "trailing"]
    scoring = ["--samples", tmp_path / "samples", "--reference", tmp_path / "samples", "--extractor", "digits"]
    scoring += ["--metrics", "kid", "--bootstrap", 0, "--threads", 1, "--num_images", 6]
    for arguments, folder, main in (
        (words, "samples", sample.main),
        (words, "samples", sample.main),  # all are there
        (scoring, "scores", evaluate.main),
    ):
        run = Started(arguments, tmp_path / folder, 2, only_the_main_process_looks, main)
        assert run.wait() == [0, 0], run.said()
    for steps in (2, 4):  # the second resumes
        arguments = [*SCORED_BRIEFLY, "--training.steps", steps]
        status, said = ended(tmp_path / "run", *arguments, processes=2, fault=only_the_main_process_looks)
        assert status == 0, said


def full_for_the_second() -> None:
    if os.environ["RANK"] == "1":

        def no_space(*_: Any, **__: Any) -> None:
            raise OSError(ENOSPC, "No space left on device")

        Image.Image.save = no_space  # type: ignore[method-assign]


def test_a_disk_that_is_full_for_one_process_is_told_once(tmp_path: Path) -> None:
    words = ["--model", tiny_pipeline(tmp_path / "model"), "--num_images", 6, "--num_inference_steps", 2]
    words += ["--batch_size", 2, "--threads", 1, "--timestep_spacing", "trailing"]
    run = Started(words, tmp_path / "samples", 2, full_for_the_second, sample.main)
    assert run.wait() == [2, 2]
    assert run.said().count(": error: ") == 1
    assert "000002.png cannot be written: No space left on device; 4 of 6 images were made and stay" in run.said()
    assert not list((tmp_path / "samples").rglob(".*"))
    run = Started(words, tmp_path / "samples", 2, main=sample.main)
    assert run.wait() == [0, 0]
    assert "2 images made" in run.said()
    assert np.asarray(Image.open(tmp_path / "samples" / "000000" / "000005.png")).shape == (8, 8)


def test_what_a_killed_process_left_keeps_nobody_out_of_a_folder(tmp_path: Path) -> None:
    """The first file of a folder of results is its manifest."""
    (tmp_path / ".manifest.json.partial").write_text("{")
    (tmp_path / ".grid.png.7.partial").touch()
    manifest.claim(tmp_path, {"seed": 0}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    (tmp_path / "manifest.json").write_bytes(b'{"settings": "\xff"}')
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        manifest.claim(tmp_path, {"seed": 0}, {})
