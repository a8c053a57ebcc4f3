"""The command line: of a training run, a YAML recipe and settings over it; of other commands, settings alone.

The command line wins over the recipe, the recipe over the defaults. ``model.*`` are the constructor keys of
:class:`~ddpm_hf.UNet2DModel` and ``diffusion.*`` those of :class:`~ddpm_hf.DDPMScheduler`: their names, types, defaults
and help come from those classes, so a recipe says what a saved ``config.json`` says.
"""

import argparse
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from ddpm_hf.data.settings import DataConfig
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.training.settings import Config, EvaluationConfig, TrainingConfig

Settings = TypeVar("Settings")


def parse_config(argv: Sequence[str], default_recipe: Path) -> Config:
    """The settings that a command line asks for.

    Args:
        argv: The arguments without the program's name.
        default_recipe: The recipe that counts when ``argv`` names none with ``--config``.

    Wrong settings end the program with one sentence and status 2; ``--help`` and ``--print_config`` end it with 0.
    """
    argv = take_token(argv)
    # The recipe is found first and then read as defaults: so --help shows its values, and the order of the arguments
    # does not matter.
    first = PlainParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=default_recipe)
    first.add_argument("--print_config", action="store_true")
    asked, rest = first.parse_known_args(argv)
    recipe = asked.config

    parser = _make_parser(default_recipe)
    options = [*parser.get_defaults().keys(), *_GROUPS, "help"]
    settings = [key for key in options if key not in ("config", "print_config", "hub_token", "help")]
    _refuse_unknown(_keys_of_recipe(recipe), settings, f"the recipe {recipe}")
    _refuse_unknown(_keys_of_command_line(rest), options, "the command line")

    parser.default_config_files = [str(recipe)]
    namespace = parser.parse_args(rest)
    try:
        values = parser.instantiate(namespace)
        config = Config(
            output_dir=Path(values.output_dir),
            seed=values.seed,
            threads=values.threads,
            quiet=values.quiet,
            resume=values.resume,
            dry_run=values.dry_run,
            push_to_hub=values.push_to_hub,
            hub_model_id=values.hub_model_id,
            hub_private_repo=values.hub_private_repo,
            hub_license=values.hub_license,
            hub_strategy=values.hub_strategy,
            data=values.data,
            model=values.model.as_dict(),
            diffusion=values.diffusion.as_dict(),
            training=values.training,
            evaluation=values.evaluation,
        )
    except ValueError as error:
        fail(str(error))
    if asked.print_config:
        print(config.to_yaml(), end="")
        raise SystemExit(0)
    return config


def parse_settings(
    kind: type[Settings], argv: Sequence[str], description: str, is_positional: bool = False
) -> Settings:
    """The settings of a command without recipes: the fields of a dataclass, explained by its docstring.

    Args:
        kind: The dataclass.
        argv: The arguments without the program's name.
        description: For ``--help``.
        is_positional: The fields without a default are given in their order, without their names.

    A switch may stand without its value, and the values of a list one after the other (``--metrics fid kid``). Wrong
    settings end the program with one sentence and status 2; ``--help`` ends it with 0.
    """
    argv = take_token(argv)
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_class_arguments(kind, as_positional=is_positional)
    parser.add_argument("--hub_token", type=str | None, default=None, help=TOKEN_HELP)
    options = [*(field.name for field in fields(kind)), "hub_token", "help"]  # type: ignore[arg-type]
    _refuse_unknown(_keys_of_command_line(argv), options, "the command line")
    types = get_type_hints(kind)
    switches = {f"--{name}" for name, type_ in types.items() if type_ is bool}
    lists = {f"--{name}" for name, type_ in types.items() if get_origin(type_) is list}
    values = vars(parser.parse_args(list(_one_value_each(argv, switches, lists))))
    del values["hub_token"]
    try:
        return kind(**values)
    except ValueError as error:
        fail(str(error))


TOKEN_HELP = "Of the Hub, in place of HF_TOKEN and of 'hf auth login'; written to no file."


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


def _one_value_each(argv: Sequence[str], switches: set[str], lists: set[str]) -> Iterator[str]:
    """The arguments as jsonargparse wants them: ``--switch=true`` and ``--list=["a", "b"]``."""
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument in switches:
            yield f"{argument}=true"
        elif argument in lists:
            stop = next((i for i in range(position, len(argv)) if argv[i].startswith("--")), len(argv))
            yield f"{argument}={json.dumps(argv[position:stop])}"
            position = stop
        else:
            yield argument


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one sentence on stderr, said once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # The launcher stops all processes when one ends, so the one that speaks must end first.
    raise SystemExit(status)


_GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": UNet2DModel,
    "diffusion": DDPMScheduler,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}


class PlainParser(argparse.ArgumentParser):
    """The standard library's, whose errors end the program in one sentence."""

    def error(self, message: str) -> NoReturn:
        fail(message)


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(_one_sentence(message))


def _make_parser(default_recipe: Path) -> ArgumentParser:
    parser = _Parser(
        description="Train a diffusion model on images; then sample, score and save it.",
        usage="accelerate launch train_accelerate.py [--config RECIPE] [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=str, default=str(default_recipe), help="The recipe, a YAML file.")
    parser.add_argument("--print_config", action="store_true", help="Print the resolved settings as a recipe and end.")
    parser.add_argument(
        "--output_dir", type=str, default="runs/digits", help="Where the run goes, and where it goes on."
    )
    parser.add_argument("--seed", type=int, default=0, help="Everything random in the run follows from it.")
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="CPU threads of each process; null shares the usable cores out over the processes of this machine.",
    )
    parser.add_argument(
        "--resume",
        type=str,
        default="auto",
        help="auto goes on from the newest complete checkpoint in output_dir, if there is one; never starts anew and "
        "replaces what is there; a path goes on from that checkpoint, and hub:OWNER/NAME[@REVISION] from the one that "
        "a run with the hub_strategy checkpoints has put on the Hub, or from a newer one in output_dir.",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="A few steps, a save, a tiny sample and score, and then what the full run would cost; leaves nothing.",
    )
    parser.add_argument("--quiet", action="store_true", help="No progress bars; the scores are still printed.")
    parser.add_argument("--push_to_hub", action="store_true", help="Push the model to hub_model_id.")
    parser.add_argument(
        "--hub_model_id", type=str | None, default=None, help="OWNER/NAME; made where it is not there yet."
    )
    parser.add_argument("--hub_private_repo", action="store_true", help="Make it private, where it is made.")
    parser.add_argument("--hub_license", type=str, default="apache-2.0", help="The model's, for its card.")
    parser.add_argument("--hub_token", type=str | None, default=None, help=TOKEN_HELP)
    parser.add_argument(
        "--hub_strategy",
        type=Literal["end", "every_save", "checkpoints"],
        default="end",
        help="end pushes when all is done; every_save also the model of each checkpoint; checkpoints also the newest "
        "checkpoint itself, to a branch of that name, from which another machine can resume.",
    )
    for group, kind in _GROUPS.items():
        parser.add_class_arguments(kind, group, instantiate=is_dataclass(kind))
    return parser


def _refuse_unknown(keys: Iterable[str], known: Sequence[str], where: str) -> None:
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            fail(f"{where} sets {key!r}, which is no setting; the nearest one is {nearest!r} (--help shows all)")


def _keys_of_recipe(path: Path) -> Iterator[str]:
    try:
        recipe = yaml.safe_load(path.read_text())
    except OSError as error:
        fail(f"the recipe {path} cannot be read ({error.strerror}); give the path of a YAML file to --config")
    except yaml.YAMLError as error:
        fail(f"the recipe {path} is not YAML: {_one_sentence(str(error))}")
    if not isinstance(recipe, dict):
        fail(f"the recipe {path} must hold settings, such as 'seed: 0', and holds {recipe!r}")
    for key, value in recipe.items():
        if key in _GROUPS and isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield str(key)


def _keys_of_command_line(argv: Sequence[str]) -> Iterator[str]:
    return (argument[2:].partition("=")[0] for argument in argv if argument.startswith("--"))


def _one_sentence(message: str) -> str:
    """A message of the parser, which may be a page of types, as one sentence."""
    key, value = re.search(r'Parser key "([\w.]+)"', message), re.search(r"(?:Got|Given) value: (.*)", message)
    if key is None or value is None:
        return " ".join(message.split())
    expected = [
        re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.Literal[", "one of [").replace("NoneType", "null")
        for kind in dict.fromkeys(re.findall(r"Expected an? (.+?)(?:\. Got value|$)", message, re.MULTILINE))
    ]
    return f"{key[1]} was given {value[1]!r} and takes {' or '.join(expected)} (--help shows all settings)"
