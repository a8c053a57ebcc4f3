"""The settings of a training run: dataclasses, a YAML recipe and the command line over them.

The command line wins over the recipe, the recipe over the defaults. ``model.*`` are the constructor keys of
:class:`~ddpm_hf.unet.UNet2DModel` and ``diffusion.*`` those of :class:`~ddpm_hf.schedulers.DDPMScheduler`: their names,
types, defaults and help come from those classes, so a recipe says what a saved ``config.json`` says.
"""

import argparse
import difflib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser

from ddpm_hf.schedulers import DDPMScheduler
from ddpm_hf.unet import UNet2DModel


@dataclass(frozen=True)
class DataConfig:
    """The images to train on.

    Args:
        name: "digits" (the embedded 8x8 digits), a parquet file, a folder of images, or the id of a Hub data set.
        split: The part of the data set to train on; the embedded digits have "train" and "test".
        random_flip: Mirror each image left to right with probability 1/2.
    """

    name: str = "digits"
    split: str = "train"
    random_flip: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation; the defaults are those of Ho et al. (2020) for CIFAR-10.

    Args:
        steps: Optimizer steps.
        batch_size: Images per optimizer step, over all processes and accumulation steps together.
        gradient_accumulation_steps: Forward and backward passes per optimizer step, to save memory.
        optimizer: Adam, or AdamW with its decoupled weight decay.
        learning_rate: Its value after the warm-up.
        betas: Decay rates of the optimizer's first and second moments.
        weight_decay: Weight decay of the optimizer.
        lr_schedule: After the warm-up: constant, or down to zero at the last step along a half cosine or a line.
        warmup_steps: Steps of linear warm-up of the learning rate.
        max_grad_norm: Gradients of a larger norm are scaled down to it; .inf switches this off.
        ema_decay: Decay of the average of the weights that sampling uses, reached by min(decay, (1 + n) / (10 + n)).
        loss_weighting: none (every timestep counts alike) or min_snr (Hang et al., 2023).
        min_snr_gamma: The gamma of min_snr.
        log_every: Steps between two lines of metrics.jsonl.
    """

    steps: int = 800_000
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 5000
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    loss_weighting: Literal["none", "min_snr"] = "none"
    min_snr_gamma: float = 5.0
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "log_every"):
            _check(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        for name in ("learning_rate", "max_grad_norm", "min_snr_gamma"):
            _check(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "above 0")
        _check(self.warmup_steps >= 0, "training.warmup_steps", self.warmup_steps, "at least 0")
        _check(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        _check(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "at least 0 and below 1")
        for beta in self.betas:
            _check(0 <= beta < 1, "training.betas", self.betas, "two numbers, each at least 0 and below 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """The images drawn at the end with the averaged weights and DDIM, and scored where the data are the digits.

    Args:
        num_images: Images to draw; as many held-out images give the floor of the scores.
        num_inference_steps: Steps of the sampler.
        timestep_spacing: How those steps lie on the training steps.
        eta: Noise of the sampler: 0 is DDIM, 1 is DDPM on the same steps.
        batch_size: Images drawn at a time, per process.
    """

    num_images: int = 500
    num_inference_steps: int = 50
    timestep_spacing: Literal["leading", "trailing", "linspace", "quadratic"] = "leading"
    eta: float = 0.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("num_images", "num_inference_steps", "batch_size"):
            _check(getattr(self, name) >= 1, f"evaluation.{name}", getattr(self, name), "at least 1")
        _check(0 <= self.eta <= 1, "evaluation.eta", self.eta, "from 0 to 1")


@dataclass(frozen=True)
class Config:
    """All the settings of a run. ``model`` and ``diffusion`` are keyword arguments for the two classes."""

    output_dir: Path
    seed: int
    threads: int | None
    quiet: bool
    data: DataConfig
    model: dict[str, Any]
    diffusion: dict[str, Any]
    training: TrainingConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        _check(self.seed >= 0, "seed", self.seed, "at least 0")
        _check(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")

    def to_yaml(self) -> str:
        """The resolved settings as a recipe: ``--config`` on it gives this run again."""
        recipe: str = yaml.safe_dump(_plain(asdict(self)), sort_keys=False, default_flow_style=None, width=120)
        return recipe


def parse_config(argv: Sequence[str], default_recipe: Path) -> Config:
    """The settings that a command line asks for.

    Args:
        argv: The arguments without the program's name.
        default_recipe: The recipe that counts when ``argv`` names none with ``--config``.

    Wrong settings end the program with one sentence and status 2; ``--help`` and ``--print_config`` end it with 0.
    """
    # The recipe is found first and then read as defaults: so --help shows its values, and the order of the arguments
    # does not matter.
    first = _FirstParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=default_recipe)
    first.add_argument("--print_config", action="store_true")
    asked, rest = first.parse_known_args(argv)
    recipe = asked.config

    parser = _make_parser(default_recipe)
    options = [*parser.get_defaults().keys(), *_GROUPS, "help"]
    settings = [key for key in options if key not in ("config", "print_config", "help")]
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


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one sentence on stderr, said once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(10)  # The launcher stops all processes when one ends, so the one that speaks must end first.
    raise SystemExit(status)


_GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": UNet2DModel,
    "diffusion": DDPMScheduler,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}


class _FirstParser(argparse.ArgumentParser):
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
        "--output_dir", type=str, default="runs/digits", help="Where the run goes; an earlier run's files are replaced."
    )
    parser.add_argument("--seed", type=int, default=0, help="Everything random in the run follows from it.")
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="CPU threads of each process; null shares the usable cores out over the processes of this machine.",
    )
    parser.add_argument("--quiet", action="store_true", help="No progress bars; the scores are still printed.")
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


def _plain(value: Any) -> Any:
    """``value`` in the types of YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value} and must be {expected}")
