"""Training from Python: settings as on the command line, the script's own loop, one process or several."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import ddpm_hf
from ddpm_hf import train, training_config
from ddpm_hf.command_line import parse_config
from ddpm_hf.files import read_json
from ddpm_hf.recipes import default_recipes, training_script
from ddpm_hf.training.settings import Config

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {
    "threads": 1,
    "quiet": True,
    "model": {"block_out_channels": (8, 8), "norm_num_groups": 4},
    "training": {"steps": 2, "batch_size": 16},
    "evaluation": {"num_images": 8, "num_inference_steps": 3},
}


@pytest.fixture
def _fresh() -> Iterator[None]:
    """The process as it was, whatever accelerate remembers of it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_settings_are_those_of_the_command_line(tmp_path: Path) -> None:
    given = training_config(
        "cifar10",
        **{"training.learning_rate": 1e-5, "training.ema_decay": np.float32(0.5)},
        seed=np.int64(3),
        output_dir=tmp_path,
        data={"random_flip": False, "resolution": (16, 32)},
        training={"trackers": ["tensorboard"]},
        evaluation={"timestep_spacing": None},
    )
    typed = ["--config", "cifar10", "--training.learning_rate", "1e-5", "--training.ema_decay", "0.5", "--seed", "3"]
    typed += ["--output_dir", str(tmp_path), "--data.random_flip", "false", "--data.resolution", "[16,32]"]
    typed += ["--training.trackers", "tensorboard", "--evaluation.timestep_spacing", "null"]
    assert given == parse_config(typed, *default_recipes())
    assert training_config() == parse_config([], *default_recipes())
    assert training_config(data={"name": "my/photos", "resolution": 32}).output_dir == Path("runs/photos")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sed": 3}, "'sed', which is no setting; the nearest one is 'seed'"),
        ({"training": {"steps": 0}}, "training.steps is 0 and must be at least 1"),
        ({"seed": "x"}, "seed was given 'x' and takes int"),
        ({"data.random_flip": 3}, "data.random_flip was given"),
    ],
)
def test_a_wrong_setting_is_an_error_that_a_notebook_outlives(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        training_config("digits", **settings)
    with pytest.raises(ValueError, match=r"no recipe 'digit'; .* the nearest one is 'digits'"):
        training_config("digit")


@pytest.mark.usefixtures("_fresh")
def test_two_calls_train_and_the_same_again_reads_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training_config("digits", output_dir=tmp_path / "run", **TINY)
    trained = train(config)
    assert trained.folder == tmp_path / "run"
    assert trained.scores == read_json(trained.folder / "metrics.json")["scores"]
    assert len(trained.pipeline()(seeds=range(2), num_inference_steps=2).images) == 2
    steps = list[int]()
    loop = training_script().train

    def watched(run: Any) -> None:
        steps.append(run.state.step)
        loop(run)

    monkeypatch.setattr(training_script(), "train", watched)
    assert train(config) == trained
    assert steps == [2]  # its last checkpoint was found


def test_settings_load_no_torch() -> None:
    """Or accelerate could not start processes on GPUs afterwards."""
    code = "import sys, ddpm_hf; ddpm_hf.training_config(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "False"


def blocks() -> list[str]:
    """Of the README: on one process, then on several."""
    text = (ROOT / "README.md").read_text().partition("<!-- a notebook -->")[2]
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)[:2]


@pytest.mark.usefixtures("_fresh")
def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(*recipe: str, **settings: Any) -> Config:
        return training_config(*recipe, **(settings | TINY))

    monkeypatch.setattr(ddpm_hf, "training_config", tiny)
    monkeypatch.chdir(tmp_path)
    exec(blocks()[0], {})
    assert (tmp_path / "runs" / "notebook" / "metrics.json").is_file()
    assert (tmp_path / "digit.png").is_file()


@pytest.mark.slow
def test_accelerate_trains_on_two_processes(tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(
        "from ddpm_hf import train, training_config\n"
        f"config = training_config('digits', output_dir='run', **{TINY!r})\n"
        + blocks()[1].replace("num_processes=2", "num_processes=2, use_port='29737'")
    )
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "cell.py"], cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "environment.json")["processes"] == 2
