"""Each command in the pages and recipes is one that its program takes: parsed by the program's own parser, not run."""

import re
import sys
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

import benchmarks.__main__
import train_accelerate
from ddpm_hf import command_line
from ddpm_hf.recipes import LAUNCHERS, find_file
from tests.docs.pages import PAGES, ROOT, blocks_of, name_of
from tests.docs.shell import commands_in_text, commands_of
from tests.docs.stand_ins import fill

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CONSOLE = dict(line.split(" = ") for line in SETUP["options.entry_points"]["console_scripts"].strip().splitlines())
NEEDED = {
    "ddpm_hf.cli.sample": {"--model": "m", "--output": "o"},
    "ddpm_hf.cli.evaluate": {"--reference": "r", "--output": "o", "--samples": "s"},
}
"""What commands in the running text leave out, as they are about something else."""
OF_OTHERS = {"[", "apt-get", "cd", "git", "hf", "pre-commit", "scontrol", "source"}
"""Programs whose words are not looked at."""


class Parsed(BaseException):
    """Raised in the place of the work."""


class Programs:
    """Parses commands; `is_whole` is False of those that may leave out what is needed."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self._patches = patches

    def parse(self, command: Sequence[str], is_whole: bool = True) -> None:
        """See that a command can be given. Of a wrong one the parser raises something, or ends the program."""
        name, *words = command
        if name == "accelerate":
            assert words[0] == "launch", command
            asked, _ = launch_command_parser().parse_known_args(words[1:])
            assert asked.config_file is None or Path(asked.config_file).is_file(), command
            self._python(asked.module, [asked.training_script, *asked.training_script_args], is_whole)
        elif name == "torchrun":
            asked = get_args_parser().parse_args(words)
            self._python(asked.module, [asked.training_script, *asked.training_script_args], is_whole)
        elif name in ("python", "python3"):
            is_module = words[0] == "-m"
            self._python(is_module, words[is_module:], is_whole)
        elif name in CONSOLE:
            self._module(CONSOLE[name].partition(":")[0], words, is_whole)
        elif name == "pip":
            extras = re.findall(r"(?:\.|ddpm-hf)\[([\w,]+)\]", " ".join(words))
            assert words[0] == "install", command
            assert {extra for several in extras for extra in several.split(",")} <= {*SETUP["options.extras_require"]}
        elif name == "bash":
            assert Path(words[0]).is_file(), command
        elif name == "mkdocs":
            assert words in (["serve"], ["build", "--strict"])
        else:
            assert name in OF_OTHERS, f"which program is {name}, of {command}?"

    def _python(self, is_module: bool, words: list[str], is_whole: bool) -> None:
        if is_module:
            self._module(words[0], words[1:], is_whole)
        else:
            assert words[0] == "train_accelerate.py", words
            self._train(words[1:])

    def _module(self, name: str, words: list[str], is_whole: bool) -> None:
        if name == "ddpm_hf.cli.train":
            if "--launcher" in words:
                at = words.index("--launcher")
                assert find_file(LAUNCHERS, words[at + 1]).is_file(), words
                words = words[:at] + words[at + 2 :]
            self._train(words)
        elif name.startswith("ddpm_hf"):
            module = import_module("ddpm_hf.toy.__main__" if name == "ddpm_hf.toy" else name)
            if not is_whole:
                absent = {**NEEDED.get(name, {})}
                if {"--model", "--compare"} & {*words}:  # which take the place of samples
                    absent.pop("--samples", None)
                words = words + [word for pair in absent.items() if pair[0] not in words for word in pair]
            self._end_after(command_line.parse_settings, module)
            self._call(module.main, words)
        elif name == "benchmarks":
            self._benchmark(words, is_whole)
        else:
            assert name in ("pytest", "tests.fuzz", "venv"), name
            assert all((ROOT / word).exists() for word in words if word.startswith("tests")), words

    def _train(self, words: list[str]) -> None:
        self._end_after(command_line.parse_config, command_line)
        self._call(train_accelerate.main, words)

    def _benchmark(self, words: list[str], is_whole: bool) -> None:
        name = words[0]
        if name in ("gpu", "report"):
            return
        suite = benchmarks.__main__.suite(name)
        if is_whole or len(words) > 1:  # else its name alone
            self._patches.setattr(suite, "run", _end)
            self._call(benchmarks.__main__.main, words)

    def _end_after(self, parse: Callable[..., Any], module: Any) -> None:
        """Let a module's parser of settings end the program when it finds them right."""
        parse = getattr(parse, "itself", parse)

        def parse_and_end(*arguments: Any, **options: Any) -> None:
            parse(*arguments, **options)
            raise Parsed

        parse_and_end.itself = parse  # type: ignore[attr-defined]
        self._patches.setattr(module, parse.__name__, parse_and_end)

    def _call(self, main: Callable[[], None], words: list[str]) -> None:
        self._patches.setattr(sys, "argv", ["program", *words])
        status: object = "it would have been run"
        try:
            main()
        except Parsed:
            status = 0
        except SystemExit as ended:  # with 0 after --version or --print_config
            status = ended.code
        assert status == 0, words

    def parse_all(self, script: str) -> None:
        """See that all commands of a shell script can be given."""
        for command in commands_of(script):
            self.parse(command)


def _end(*_: object) -> None:
    raise Parsed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("commands")
    fill(made)
    return made


@pytest.fixture
def programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(folder)
    return Programs(monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_parse(page: Path, programs: Programs) -> None:
    programs.parse_all("\n".join(block.code for block in blocks_of(page, "bash")))
    if page.name != "extending.md":  # whose commands are of what it adds; tests/test_extending.py tries that
        for command in commands_in_text(page.read_text()):
            programs.parse(command, is_whole=False)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda recipe: recipe.stem)
def test_the_command_of_a_recipe_parses(recipe: Path, programs: Programs) -> None:
    for line in re.findall(r"^# Command: +(.*)$", recipe.read_text(), flags=re.M):
        programs.parse_all(line)


@pytest.mark.parametrize(
    "wrong",
    [
        "accelerate launch train_accelerate.py --sed 1",
        "accelerate launch --config_file configs/accelerate/none.yaml train_accelerate.py",
        "timeout --signal TERM 8h accelerate launch train_accelerate.py --training.steps 0",
        "srun --x ddpm-hf-sample --model m",
        "cd x && ddpm-hf-sample --model m --output o --eta 2 > log 2>&1",
        "python -m benchmarks nothing",
        "python -m benchmarks few_steps --nothing 1",
        'run="torchrun train_accelerate.py"\n$run --config nothing',
        "bash -c 'cd x && ddpm-hf-convert a.pt'",
        'pip install -e ".[nothing]"',
        "python -m pytest tests/nothing",
        "rm -r /",
    ],
)
def test_a_wrong_command_is_found(wrong: str, programs: Programs) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError, ModuleNotFoundError)):
        programs.parse_all(wrong)
