"""The command line: of a training run, a YAML recipe and settings over it; of other commands, settings alone.

The command line wins over the recipe, the recipe over the defaults. Every setting is a field of a dataclass, which says
its name, type, default and meaning once. ``model.*`` and ``diffusion.*`` are the constructor keys of
:class:`~ddpm_hf.UNet2DModel` and :class:`~ddpm_hf.DDPMScheduler`, so a recipe says what a saved ``config.json`` says.
All is parsed and checked without torch, so that --help and the refusal of a wrong setting come at once.
"""

import argparse
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ddpm_hf import __version__
from ddpm_hf.progress import speak_in_lines
from ddpm_hf.recipes import LAUNCHERS, RECIPES, find_file, names_of, read_recipe
from ddpm_hf.settings import settings_group, shown
from ddpm_hf.training.idle import idle_settings
from ddpm_hf.training.settings import Config

Settings = TypeVar("Settings")

TOKEN_HELP = "Token of the Hub, in place of HF_TOKEN and of 'hf auth login'; it is written to no file."


OF_THE_LAUNCHER = frozenset(
    {"config_file", "cpu", "use_cpu", "multi_gpu", "num_processes", "num_machines", "machine_rank", "mixed_precision"}
    | {"main_process_ip", "main_process_port", "gpu_ids", "num_cpu_threads_per_process", "same_network", "rdzv_backend"}
    | {"use_fsdp", "fsdp_config", "use_deepspeed", "deepspeed_config_file", "dynamo_backend", "downcast_bf16", "nnodes"}
    | {"nproc_per_node", "max_restarts", "monitor_interval", "module", "no_python", "enable_cpu_affinity"}
)
"""Settings of `accelerate launch` and torchrun that people give to a script."""


def parse_config(argv: Sequence[str], default_recipe: Path, others: Mapping[str, Path] | None = None) -> Config:
    """The settings that a command line asks for.

    Args:
        argv: The arguments without the program's name.
        default_recipe: The recipe that counts when ``argv`` names none with ``--config``.
        others: Setting -> the recipe that counts in its place where that setting is typed, the first in this order; a
            line on stderr says so. The data "digits" count as not typed.

    Wrong settings end the program with one sentence and status 2; ``--help``, ``--version`` and ``--print_config`` end
    it with 0.
    """
    try:
        config = config_of(take_token(argv), default_recipe, others)
    except ValueError as error:
        fail(str(error))
    speak_in_lines(config.quiet)
    return config


def config_of(argv: Sequence[str], default_recipe: Path, others: Mapping[str, Path] | None = None) -> Config:
    """As :func:`parse_config`, for callers that go on after wrong settings.

    Raises:
        ValueError: settings are wrong, in one sentence.
    """
    parser = _Parser(
        description="Train a diffusion model on images; then sample, score and save it. ddpm-hf-train starts the "
        f"processes that --launcher says: a launcher file of accelerate, or one of {', '.join(names_of(LAUNCHERS))}.",
        usage="accelerate launch train_accelerate.py [--config RECIPE] [--SETTING VALUE ...]\n"
        "       ddpm-hf-train [--launcher FILE] [--config RECIPE] [--SETTING VALUE ...]",
    )
    otherwise = [f"{path.stem} where {name} is {_OTHERWISE[name]}" for name, path in (others or {}).items()]
    recipes = f"The recipe, a YAML file or one of {', '.join(names_of(RECIPES))}"
    help = "; without it, ".join([recipes, ", ".join(otherwise)]) + "."
    parser.add_argument("--config", type=str, default=str(default_recipe), help=help)
    parser.add_argument("--print_config", type=bool, default=False, help="Print all the settings as a recipe and end.")
    groups = _groups_of(Config)
    parser.add_class_arguments(Config, skip=set(groups))
    for group, kind in groups.items():
        parser.add_class_arguments(kind, group)
    parser.add_token()
    settings = parser.settings - {"config", "print_config", "hub_token"}
    words = parser.words_of(argv)

    # The recipe is found first and then read as defaults: so --help shows its values, and the order of the arguments
    # does not matter.
    recipe, why = _recipe_of(words, default_recipe, others or {})
    of_recipe = list(_keys_of_recipe(recipe, groups))
    _refuse_unknown(of_recipe, settings | groups.keys(), f"the recipe {recipe}")
    parser.default_config_files = [str(recipe)]

    parsed = parser.parse_settings(words)
    typed = {word[2:].partition("=")[0].removesuffix("+") for word in words if word.startswith("--")}
    values = vars(parser.instantiate(parsed))
    asked = {field.name: values[field.name] for field in fields(Config)}
    for field in fields(Config):
        if "constructor" in field.metadata:
            inner = dict(vars(asked[field.name]))
            if asked["init_from"] is not None:  # the others are that model's, which is not read yet
                inner = {name: inner[name] for name in inner if f"{field.name}.{name}" in {*of_recipe, *typed}}
            asked[field.name] = inner
    config = Config(**asked)
    for name, sentence in idle_settings(config).items():
        if name in typed:  # of a recipe, the run says so
            raise ValueError(f"{sentence}; give that too, or leave it out")
    if why and not config.quiet and os.environ.get("RANK", "0") == "0":
        print(f"The recipe is {recipe}, {why}; --config gives another.", file=sys.stderr)
    if values["print_config"]:
        print(config.to_yaml(), end="")
        raise SystemExit(0)
    return config


def _recipe_of(words: Sequence[str], default_recipe: Path, others: Mapping[str, Path]) -> tuple[Path, str]:
    """The recipe, and why it is that one where neither the command line nor the default says so."""
    parser = _RecipeParser(add_help=False, allow_abbrev=False)
    for name in ("config", *others):
        parser.add_argument(f"--{name}")
    asked = vars(parser.parse_known_args(words)[0])
    if asked["config"] is not None:
        return find_file(RECIPES, asked["config"]), ""
    for name, recipe in others.items():
        if asked[name] is not None and (name, asked[name]) != ("data.name", "digits"):
            return recipe, f"as {name} is {_OTHERWISE[name]}"
    return default_recipe, ""


_OTHERWISE = {"init_from": "given", "data.name": "not digits"}


def parse_settings(
    kind: type[Settings], argv: Sequence[str], description: str, is_positional: bool = False
) -> Settings:
    """The settings of a command without recipes: the fields of a dataclass, explained by its docstring.

    Args:
        kind: The dataclass.
        argv: The arguments without the program's name.
        description: For ``--help``.
        is_positional: The fields without a default are given in their order, without their names.

    Wrong settings end the program with one sentence and status 2; ``--help`` and ``--version`` end it with 0.
    """
    argv = take_token(argv)
    required = [field.name for field in fields(kind) if _is_required(field)]  # type: ignore[arg-type]
    shown = [name.upper() if is_positional else f"--{name} {name.upper()}" for name in required]
    parser = _Parser(description=description, usage=" ".join(["%(prog)s", *shown, "[--SETTING VALUE ...]"]))
    parser.add_class_arguments(kind, as_positional=is_positional)
    parser.add_token()
    parser.has_positionals = is_positional
    try:
        values = vars(parser.parse_settings(parser.words_of(argv)))
        del values["hub_token"]
        settings = kind(**values)
    except ValueError as error:
        fail(str(error))
    speak_in_lines(values.get("quiet", False))
    return settings


def take_token(argv: Sequence[str]) -> list[str]:
    """The command line without ``--hub_token``, whose value becomes this process's HF_TOKEN.

    There every library of the Hub finds it. It leaves :data:`sys.argv` too, which results and trackers record.
    """
    rest, words = list[str](), iter(argv)
    for word in words:
        option, _, value = word.partition("=")
        if option == "--hub_token":
            os.environ["HF_TOKEN"] = value or next(words, "")
        else:
            rest.append(word)
    if len(rest) < len(argv):
        sys.argv[1:] = rest
    return rest


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one sentence on stderr, said once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        program = Path(sys.argv[0])  # of `python -m ddpm_hf.toy` this is the file that stands for the package
        name = program.parent.name if program.name == "__main__.py" else program.name
        print(f"{name}: error: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # The launcher stops all processes when one ends, so the one that speaks must end first.
    raise SystemExit(status)


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


@contextmanager
def ending_in_one_sentence() -> Iterator[None]:
    """End the program with one sentence where the user, the settings or the machine allow no more.

    Other errors are defects, and pass.
    """
    try:
        yield
    except (ValueError, NotImplementedError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; what was finished stays, and the same command makes the rest", status=INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        sentence = _of_the_machine(error)
        if sentence is None:
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0":  # the others may have memory left, and would not say it
            print(f"process {rank}: {sentence}", file=sys.stderr, flush=True)
        fail(sentence, status=1)


def _of_the_machine(error: Exception) -> str | None:
    """A sentence for what torch says of memory that is full and of processes that are gone; None of anything else."""
    said = " ".join(str(error).split())
    is_full = isinstance(error, MemoryError) or "out of memory" in said.lower() or "can't allocate memory" in said
    if is_full or "Storage size calculation overflowed" in said:
        asked = re.search(r"allocate (\d+) bytes", said) or re.search(r"Tried to allocate ([\d.]+ \wiB)", said)
        amount = f" ({asked[1]}{' bytes' if asked[1].isdigit() else ''} asked at once)" if asked else ""
        return (
            f"out of memory{amount}; lower the batch size or take a smaller network; in training also raise "
            "training.gradient_accumulation_steps or switch on training.gradient_checkpointing"
        )
    if re.search(r"Connection (closed|reset) by (peer|remote)|Socket Timeout|Broken pipe|failed to recv", said):
        return "another process of this run has ended, and so this one ends; what was saved stays"
    return None


class _RecipeParser(argparse.ArgumentParser):
    """The standard library's, whose errors are of one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _Formatter(DefaultHelpFormatter):
    """Shows a switch as it is typed, without a value, and a path as a path."""

    def _expand_help(self, action: argparse.Action) -> str:
        return super()._expand_help(action).replace("<class 'Path'>", "path")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if _type_of(action) is bool and action.option_strings:
            return ", ".join(action.option_strings)
        return super()._format_action_invocation(action)


class _Parser(ArgumentParser):
    """jsonargparse's, with switches and lists as people type them, and errors of one sentence."""

    has_positionals = False

    def __init__(self, description: str, usage: str) -> None:
        super().__init__(description=description, usage=usage, formatter_class=_Formatter, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"ddpm-hf {__version__}", help="Show the version.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(_one_sentence(message))

    def add_token(self) -> None:
        """What :func:`take_token` has taken is in --help all the same."""
        self.add_argument("--hub_token", type=str | None, default=None, help=TOKEN_HELP)

    @property
    def settings(self) -> set[str]:
        """The names of all settings; groups, which jsonargparse would read from files of their own, are none."""
        return {action.dest for action in self._actions if _type_of(action) is not None}

    def words_of(self, argv: Sequence[str]) -> list[str]:
        """The arguments as jsonargparse wants them: ``--switch=true``, ``--list=["a", "b"]``.

        A setting that nobody knows ends the program.
        """
        names = (argument[2:].partition("=")[0] for argument in argv if argument.startswith("--"))
        _refuse_unknown(
            (name.removesuffix("+") for name in names), self.settings | {"help", "version"}, "the command line"
        )
        types = {option: _type_of(action) for action in self._actions for option in action.option_strings}
        words, position = list[str](), 0
        while position < len(argv):
            word = argv[position]
            position += 1
            stop = next((i for i in range(position, len(argv)) if argv[i].startswith("--")), len(argv))
            values = argv[position:stop]
            if types.get(word) is bool:
                is_value = bool(values) and (values[0].lower() in ("true", "false") or not self.has_positionals)
                words.append(f"{word}={values[0] if is_value else 'true'}")
                position += is_value
            elif (inner := _entries_of(types.get(word))) and not (
                len(values) == 1 and (values[0].startswith("[") or values[0] == "null")
            ):
                words.append(f"{word}=[{','.join(values)}]" if inner is int else f"{word}={json.dumps(values)}")
                position = stop
            else:
                words.append(word)
        return words

    def parse_settings(self, words: Sequence[str]) -> Any:
        """The values of all settings; groups of the recipe count as defaults."""
        for action in self._actions:
            if action.dest not in self.settings and action.dest not in ("help", "version"):
                action.help = argparse.SUPPRESS  # a file for a group
        parsed = self.parse_args(list(words))
        for action in self._actions:  # jsonargparse takes null for any setting
            kind = _type_of(action)
            if kind is not None and NoneType not in get_args(kind) and parsed.get(action.dest, kind) is None:
                self.error(f'Parser key "{action.dest}": Expected a {kind}. Got value: null')
        return parsed


def _type_of(action: argparse.Action) -> Any:
    """The type of a setting; None of what is none."""
    return getattr(action, "_typehint", None) or action.type


def _entries_of(kind: Any) -> Any:
    """The type of the entries of a list, which may also be null; None of any other type."""
    lists = [one for one in get_args(kind) if one is not NoneType] if NoneType in get_args(kind) else [kind]
    return get_args(lists[0])[0] if len(lists) == 1 and get_origin(lists[0]) is list else None


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _groups_of(kind: type) -> dict[str, type]:
    """The fields that hold settings of their own, with the dataclass of each."""
    types, groups = get_type_hints(kind), {}
    for field in fields(kind):
        constructed = settings_group(field)
        if constructed is not None:
            groups[field.name] = constructed
        elif is_dataclass(types[field.name]):
            groups[field.name] = types[field.name]
    return groups


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    names = sorted(known)
    for key in keys:
        if key in OF_THE_LAUNCHER and key not in names:
            raise ValueError(
                f"{where} sets {key!r}, which the launcher takes and no command does; give it before the script, as in "
                f"'accelerate launch --{key} ... train_accelerate.py', or in the launcher's --config_file"
            )
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{where} sets {key!r}, which is no setting; the nearest one is {nearest!r} (--help shows all)"
            )


def _keys_of_recipe(path: Path, groups: Mapping[str, type]) -> Iterator[str]:
    """The keys of a recipe as the command line has them; a file that is no recipe is refused."""
    recipe = read_recipe(path)
    if not isinstance(recipe, dict):
        held = "nothing" if recipe is None else shown(recipe)
        raise ValueError(f"the recipe {path} must hold settings, such as 'seed: 0', and holds {held}")
    for key, value in recipe.items():
        if key in groups and not isinstance(value, Mapping):
            example = fields(groups[key])[0].name
            raise ValueError(
                f"the recipe {path} sets {key!r} to {shown(value)}, and it takes settings of its own, each on a line "
                f"below it, such as '{example}: ...'"
            )
        yield from (f"{key}.{inner}" for inner in value) if key in groups else [str(key)]


_SHOWN = {"bool": "true or false", "Path": "path"}


def _one_sentence(message: str) -> str:
    """A message of the parser, which may be a page of types, as one sentence."""
    key, value = re.search(r'Parser key "([\w.]+)"', message), re.search(r"(?:Got|Given) value: (.*)", message)
    if key is None or value is None:
        return " ".join(message.split())
    kinds = dict.fromkeys(re.findall(r"Expected an? (.+?)(?:\. Got value|$)", message, re.MULTILINE))
    expected = [re.sub(r"<class '(\w+)'>", lambda name: _SHOWN.get(name[1], name[1]), kind) for kind in kinds]
    expected = [kind.replace("typing.Literal[", "one of [").replace("NoneType", "null") for kind in expected]
    return f"{key[1]} was given {value[1]!r} and takes {' or '.join(expected)} (--help shows all settings)"
