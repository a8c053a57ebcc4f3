"""Trackers: each that accelerate has, with pictures; one that is absent, and one that does not start, in a sentence."""

import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType
from PIL import Image

from ddpm_hf.launch import start_processes
from ddpm_hf.training import trackers
from ddpm_hf.training.choices import TRACKERS
from tests.runs import ended, finished

PICTURE = Image.new("L", (4, 4), 128)


def test_all_that_accelerate_knows_are_here_and_none_else() -> None:
    assert set(TRACKERS) == set(LoggerType.list()) - {"all"} == {*LOGGER_TYPE_TO_CLASS}


@pytest.mark.parametrize("name", TRACKERS)
def test_one_that_is_not_installed_names_its_command_before_anything_starts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm_hf.launch.find_spec", lambda module: None if module == name else find_spec(module))
    with pytest.raises(ValueError, match=f"the tracker '{name}' is not installed; run 'pip install {name}'"):
        start_processes(1, trackers=[name])


class Recorder:
    """Remembers what is called on it, however deep."""

    def __init__(self, name: str, calls: list[tuple[str, Any]], path: str = "") -> None:
        self.name, self._calls, self._path = name, calls, path

    def __getattr__(self, attribute: str) -> "Recorder":
        return Recorder(self.name, self._calls, f"{self._path}.{attribute}")

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self._calls.append((self._path, (arguments, options)))


@pytest.mark.parametrize("name", TRACKERS)
def test_each_receives_a_picture_with_its_name_and_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    of_module = {"mlflow:log_image": Recorder(name, calls), "trackio:Image": lambda picture: picture}
    resolve = trackers.resolve_name
    monkeypatch.setattr(trackers, "resolve_name", lambda path: of_module.get(path) or resolve(path))
    accelerator: Any = SimpleNamespace(trackers=[Recorder(name, calls)])
    trackers.send_picture(accelerator, "samples", PICTURE, 7)
    assert len(calls) == 1
    said = str(calls)
    assert "samples" in said
    assert "7" in said
    assert "RGB" in said or name == "tensorboard"


def test_what_lies_on_the_disk_lies_in_the_folder_of_the_run(tmp_path: Path) -> None:
    options = trackers.options_of(tmp_path / "digits", is_resumed=False)
    assert options.keys() <= TRACKERS.keys()
    assert options["trackio"] == {"name": "digits", "resume": "never"}
    assert trackers.options_of(tmp_path / "digits", is_resumed=True)["trackio"]["resume"] == "allow"
    for name, option in (("wandb", "dir"), ("dvclive", "dir"), ("swanlab", "logdir")):
        assert options[name][option].startswith(str(tmp_path / "digits"))


def no_key(*_: Any) -> None:
    raise RuntimeError("no key is\nconfigured")


def without_a_key() -> None:
    Accelerator.init_trackers = no_key


def test_one_that_does_not_start_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    arguments = ["--training.steps", "2", "--training.trackers", "[tensorboard]"]
    status, said = ended(tmp_path / "run", *arguments, processes=2, fault=without_a_key)
    assert status == 2
    assert said.count("training.trackers tensorboard cannot start: no key is configured; mend that, or take") == 1
    assert "Traceback" not in said


def test_two_processes_have_each_grid_once(tmp_path: Path) -> None:
    arguments = ["--training.steps", "2", "--training.trackers", "[tensorboard]", "--training.sample_every", "1"]
    run = finished(tmp_path / "run", *arguments, processes=2)
    written = b"".join(path.read_bytes() for path in run.glob("ddpm_hf/events.*"))
    assert written.count(b"\x89PNG") == 2


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_holds_curves_and_grids_and_goes_on_with_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    arguments = ["--training.trackers", "[trackio]", "--training.log_every", "1", "--training.lr_schedule", "constant"]
    for steps in ("2", "4"):
        finished(tmp_path / "run", *arguments, "--training.steps", steps, "--training.sample_every", "2")
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2
    [database] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_id, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for _, step, content in rows if "loss" in json.loads(content)] == [1, 2, 3, 4]
    assert len({run for run, *_ in rows}) == 1
