"""A run that begins anew replaces nothing of value."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddpm_hf.command_line import parse_config
from ddpm_hf.files import sha256_of
from ddpm_hf.training.folder import refuse_to_replace
from tests.runs import ended, finished

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "digits.yaml"


def settings_of(*arguments: str) -> Any:
    return parse_config(arguments, default_recipe=RECIPE).to_dict()


def begun(folder: Path, *arguments: str, lines: int = 2) -> None:
    """What a run leaves that was killed before its first checkpoint."""
    (folder / "checkpoints" / ".step-5.partial").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "samples" / "step-00000003.png").touch()
    (folder / "config.yaml").write_text(parse_config(arguments, default_recipe=RECIPE).to_yaml())
    (folder / "environment.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(1, 1 + lines)) + '{"step": ')


def with_file(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder.rmdir(),
        lambda folder: None,
        begun,
        lambda folder: begun(folder, "--training.log_every", "7", "--output_dir", "elsewhere"),
        lambda folder: begun(folder, "--seed", "1", lines=0),
        *map(with_file, (".gitignore", "train.log", "slurm-12.out", "nohup.out", "recipe.yaml", "lost+found/x")),
        *map(with_file, ("checkpoints/.step-3.partial/x", ".lock")),
    ],
)
def test_what_is_not_of_value_is_no_obstacle(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "run").mkdir()
    make(tmp_path / "run")
    refuse_to_replace(tmp_path / "run", settings_of())


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (with_file("model_index.json"), "model_index.json"),
        (with_file("unet/config.json"), "unet"),
        (with_file("scheduler/scheduler_config.json"), "scheduler"),
        (with_file("config.json"), "config.json"),  # a repository with all in its root
        (with_file("diffusion_pytorch_model.safetensors"), "diffusion_pytorch_model.safetensors"),
        (with_file("metrics.json"), "metrics.json"),
        (with_file("best/model_index.json"), "best"),
        (with_file("config.yaml"), "config.yaml"),
        (with_file("metrics.jsonl"), "metrics.jsonl"),
        (with_file("samples/grid.png"), "samples"),
        (with_file("thesis.docx"), "thesis.docx"),
        (lambda folder: begun(folder, "--seed", "1"), "config.yaml, environment.json, metrics.jsonl, samples"),
    ],
)
def test_what_is_of_value_is_named_with_the_two_ways_out(
    tmp_path: Path, make: Callable[[Path], None], what: str
) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match="and no checkpoint from which this run could go on") as caught:
        refuse_to_replace(tmp_path, settings_of())
    assert f"{tmp_path} holds {what}, and no" in str(caught.value)
    assert "give another --output_dir, or replace what is there with --resume never" in str(caught.value)


def test_many_things_of_value_are_counted(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.jpg").touch()
    with pytest.raises(ValueError, match=r"holds 00.jpg, 01.jpg, .*, 05.jpg and 14 more, and"):
        refuse_to_replace(tmp_path, settings_of())


def test_a_copy_without_its_checkpoints_is_left_as_it_is(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "--training.steps", 3)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints")
    before = {path: sha256_of(path) for path in copy.rglob("*") if path.is_file()}
    for more in (["--seed", 1], ["--seed", 1, "--resume", run / "checkpoints" / "step-3"], []):
        status, said = ended(copy, "--training.steps", 3, *more)
        assert (status, said.count("\n")) == (2, 1), said
        assert {path: sha256_of(path) for path in copy.rglob("*") if path.is_file()} == before
    finished(copy, "--training.steps", 3, "--seed", 1, "--resume", "never")
