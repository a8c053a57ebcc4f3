"""The commands: nothing heavy is loaded before the settings are right, and switches and lists are taken as typed."""

import inspect
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_type_hints

import pytest

from ddpm_hf import DDPMScheduler, UNet2DModel
from ddpm_hf.cli.push import PushConfig
from ddpm_hf.command_line import parse_config, parse_settings
from ddpm_hf.settings import constructor_settings

ROOT = Path(__file__).parents[1]
HEAVY = [
    "torch",
    "diffusers",
    "accelerate",
    "datasets",
    "transformers",
    "huggingface_hub",
    "torchmetrics",
    "scipy",
    "numpy",
    "PIL",
    "gradio",
]
# Each command with settings that are wrong by their values, not by their names.
COMMANDS = {
    "train_accelerate": ["--model.layers_per_block", "0"],
    "ddpm_hf.cli.train": ["--model.layers_per_block", "0"],
    "ddpm_hf.cli.sample": ["--model", "m", "--output", "o", "--seed", "-1"],
    "ddpm_hf.cli.evaluate": ["--reference", "r", "--output", "o"],
    "ddpm_hf.cli.convert": ["a.pt", "b", "--sample_size", "0"],
    "ddpm_hf.cli.ema": ["runs/digits", "--sigma_rel", "0.5"],
    "ddpm_hf.cli.demo": ["runs/digits", "--port", "0"],
    "ddpm_hf.cli.push": ["no_such_folder", "me/name"],
    "ddpm_hf.toy.__main__": ["--steps", "0"],
}
TRY = """
import sys
from importlib import import_module
sys.argv = sys.argv[1:]
try:
    import_module(sys.argv[0]).main()
except SystemExit as end:
    print("status", end.code, "loaded", *sorted(sys.modules.keys() & set("{heavy}".split())))
"""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["help", "wrong value", "unknown setting"])
def test_no_heavy_library_is_loaded_before_the_settings_are_right(command: str, kind: str) -> None:
    argv = {"help": ["--help"], "wrong value": COMMANDS[command], "unknown setting": ["--sed", "3"]}[kind]
    script = TRY.format(heavy=" ".join(HEAVY))
    said = subprocess.run([sys.executable, "-c", script, command, *argv], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1:] == [f"status {0 if kind == 'help' else 2} loaded"], said.stderr
    assert said.stderr.count("\n") == (0 if kind == "help" else 1), said.stderr


@pytest.mark.parametrize("kind", [UNet2DModel, DDPMScheduler])
def test_the_settings_of_a_constructor_are_its_signature(kind: type) -> None:
    settings = constructor_settings(f"{kind.__module__}:{kind.__name__}")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    assert [(parameter.name, parameter.default) for parameter in parameters] == [
        (field.name, field.default) for field in fields(settings)
    ]
    types = get_type_hints(kind.__init__)  # type: ignore[misc]
    assert get_type_hints(settings) == {parameter.name: types[parameter.name] for parameter in parameters}
    assert settings.__doc__ == inspect.getdoc(kind)


@dataclass(frozen=True)
class Example:
    """Settings.

    Args:
        name: A name.
        loud: A switch.
        kinds: A list.
        number: A number.
        channels: A list of numbers, or none.
    """

    name: str
    loud: bool = False
    kinds: list[Literal["a", "b"]] = field(default_factory=list)
    number: int = 0
    channels: list[int] | None = None


def parse(*argv: str) -> Example:
    return parse_settings(Example, argv, "An example.")


@pytest.mark.parametrize(
    ("argv", "is_loud"),
    [
        (["--loud"], True),
        (["--loud", "true"], True),
        (["--loud=true"], True),
        (["--loud", "false"], False),
        (["--loud=false"], False),
        (["--loud", "--number", "3"], True),
        ([], False),
    ],
)
def test_a_switch_stands_alone_or_with_its_value(argv: list[str], is_loud: bool) -> None:
    assert parse("--name", "x", *argv).loud is is_loud
    assert parse(*argv, "--name", "x").loud is is_loud


def test_a_switch_before_a_positional_argument_does_not_take_it_for_its_value(tmp_path: Path) -> None:
    config = parse_settings(PushConfig, ["--checkpoints", str(tmp_path), "me/x"], "", is_positional=True)
    assert config == PushConfig(tmp_path, "me/x", checkpoints=True)
    argv = ["--checkpoints", "false", str(tmp_path), "me/x"]
    assert parse_settings(PushConfig, argv, "", is_positional=True) == PushConfig(tmp_path, "me/x")


@pytest.mark.parametrize("argv", [["--kinds", "a", "b"], ["--kinds", "[a, b]"], ["--kinds=[a,b]"]])
def test_a_list_is_given_word_by_word_or_as_yaml(argv: list[str]) -> None:
    assert parse("--name", "x", *argv).kinds == ["a", "b"]
    assert parse(*argv, "--name", "x").kinds == ["a", "b"]


@pytest.mark.parametrize("argv", [["2", "0"], ["2,0"], ["[2, 0]"], ["[2,0]"]])
def test_a_list_of_numbers_is_given_word_by_word_with_commas_or_as_yaml(argv: list[str]) -> None:
    assert parse("--name", "x", "--channels", *argv).channels == [2, 0]
    assert parse("--channels", *argv, "--name", "x").channels == [2, 0]
    assert parse("--channels", "7", "--name", "x").channels == [7]
    assert parse("--channels", "null", "--name", "x").channels is None


def test_help_shows_a_switch_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    words = capsys.readouterr().out.split()
    assert words[words.index("--loud") + 1 :][:2] == ["A", "switch."]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--loud", "maybe"], "loud was given 'maybe' and takes true or false"),
        (["--kinds", "a", "c"], "kinds was given 'c' and takes one of ['a', 'b']"),
        (["--number", "1.5"], "number was given '1.5' and takes int"),
        (["--number", "true"], "number was given 'True' and takes int"),
        (["--channels", "1.5"], "channels was given '1.5' and takes int"),
        (["--nam", "y"], "the nearest one is 'name'"),
    ],
)
def test_what_is_no_value_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--name", "x", *argv)
    assert end.value.code == 2
    sentence = capsys.readouterr().err
    assert said in sentence
    assert sentence.count("\n") == 1


@pytest.mark.parametrize("name", ["mixed_precision", "num_processes", "config_file"])
def test_a_setting_of_the_launcher_is_sent_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config([f"--{name}", "x"], default_recipe=ROOT / "configs" / "train" / "digits.yaml")
    said = capsys.readouterr().err
    assert f"sets {name!r}, which the launcher takes and no command does; give it before the script, as in" in said
