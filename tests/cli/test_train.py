"""ddpm-hf-train: files by name, several processes, the version, and that it runs the script that is shipped with it."""

import os
import sys
from pathlib import Path

import pytest

import ddpm_hf
from ddpm_hf.cli import train
from ddpm_hf.command_line import parse_config
from ddpm_hf.recipes import LAUNCHERS, RECIPES, default_recipes, find_file, names_of, training_script
from ddpm_hf.training.settings import Config

ROOT = Path(__file__).parents[2]


def parse(*argv: str) -> Config:
    return parse_config(argv, *default_recipes())


def run() -> None:
    """The command, which leaves signals as they are."""
    train._start_processes(sys.argv[1:])
    training_script().main()


def ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> tuple[int, str]:
    """Status and one sentence of a command that ends before it trains."""
    monkeypatch.setattr(sys, "argv", ["ddpm-hf-train", *argv])
    with pytest.raises(SystemExit) as end:
        run()
    said = capsys.readouterr()
    assert (said.out + said.err).count("\n") == 1
    return int(str(end.value.code)), said.out + said.err


@pytest.mark.parametrize("name", names_of(RECIPES))
def test_a_recipe_is_given_by_its_name_or_by_its_path(name: str) -> None:
    assert parse("--config", name) == parse("--config", str(ROOT / "configs" / "train" / f"{name}.yaml"))


def test_a_file_of_ones_own_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").write_text("seed: 7\n")
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse("--config", "mnist").seed == 7
    assert parse("--config", "photos").output_dir == Path("runs/photos")  # a folder is no recipe


def test_a_wrong_name_is_answered_with_the_right_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = ended(capsys, monkeypatch, "--config", "cifar")
    assert status == 2
    assert "no recipe 'cifar'; give the path of a file, or one of celeba64, celebahq256, cifar10, digits," in said
    assert "the nearest one is 'cifar10'" in said
    status, said = ended(capsys, monkeypatch, "--config", "mine/cifar.yaml")
    assert "the recipe mine/cifar.yaml cannot be read (No such file or directory)" in said
    assert "or one of celeba64, celebahq256, cifar10, digits," in said


def test_the_version_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(capsys, monkeypatch, "--version") == (0, f"ddpm-hf {ddpm_hf.__version__}\n")


@pytest.mark.parametrize("words", [["--launcher", "cpu_2_processes"], ["--launcher=cpu_2_processes"]])
def test_a_launcher_file_starts_its_processes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    became = list[list[str]]()
    monkeypatch.setattr(os, "execv", lambda program, argv: became.append([program, *argv]))
    for name in ("LOCAL_RANK", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.delenv(name, raising=False)
    train._start_processes(["--seed", "1", *words, "--config", "mnist"])
    file = str(ROOT / "configs" / "accelerate" / "cpu_2_processes.yaml")
    expected = ["-m", "accelerate.commands.launch", "--config_file", file, "-m", "ddpm_hf.cli.train", "--seed", "1"]
    assert became == [[sys.executable, sys.executable, *expected, "--config", "mnist"]]
    train._start_processes(["--seed", "1"])
    assert len(became) == 1


def test_a_launcher_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no launcher file 'gpu'; give the path" in ended(capsys, monkeypatch, "--launcher", "gpu")[1]
    assert "mine.yaml does not exist" in ended(capsys, monkeypatch, "--launcher", "mine.yaml")[1]
    assert "--launcher needs a launcher file" in ended(capsys, monkeypatch, "--launcher")[1]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "a launcher has started this one already" in ended(capsys, monkeypatch, "--launcher", "cpu")[1]


def test_the_script_is_the_one_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a stranger's in the current folder, which `python -m` puts first."""
    (tmp_path / "train_accelerate.py").write_text("raise SystemExit('another one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "train_accelerate", raising=False)
    script = training_script()
    assert Path(str(script.__file__)) == ROOT / "train_accelerate.py"
    assert training_script() is script


def test_every_file_has_a_name() -> None:
    for kind in (RECIPES, LAUNCHERS):
        assert {find_file(kind, name) for name in names_of(kind)} == set((ROOT / kind).iterdir())
