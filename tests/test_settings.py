"""Every setting, with the values at its edges: it works, or it is refused by its name before anything is built.

The settings and their types are read from the dataclasses, so that a new one is covered by itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch

from ddpm_hf import DDIMScheduler, DDPMScheduler, UNet2DModel
from ddpm_hf.cli.demo import DemoConfig
from ddpm_hf.cli.ema import EmaConfig
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.cli.sample import SampleConfig
from ddpm_hf.command_line import parse_config
from ddpm_hf.settings import settings_group
from ddpm_hf.toy.settings import ToyConfig
from ddpm_hf.training.settings import Config

DIGITS = Path(__file__).parents[1] / "configs" / "train" / "digits.yaml"
SMALL = ["--model.block_out_channels", "[8,8]", "--model.norm_num_groups", "4", "--diffusion.num_train_timesteps", "20"]
SMALL += ["--evaluation.num_inference_steps", "5"]

INTEGERS = [0, -1, 1, 3, 2**31, 2**63, 10**30]
NUMBERS = [0.0, -1.0, 1e-300, 0.5, 1.0, 2.0, 1e308, math.inf, -math.inf, math.nan]


def edges_of(kind: Any) -> list[Any]:
    """Values of a type that are likely to be wrong, and those that it spells out."""
    arguments = get_args(kind)
    if kind in (int, float, bool, str, Path):
        values = {int: INTEGERS, float: NUMBERS, bool: [True, False], str: ["", "nowhere"], Path: [Path("nowhere")]}
        return values[kind]
    if get_origin(kind) in (list, Sequence) or (get_origin(kind) is tuple and arguments[-1] is Ellipsis):
        make: Any = tuple if get_origin(kind) is tuple else list
        twice = [make([value] * 2) for value in (0, 8)] if arguments[0] is int else []
        return [make([]), *(make([value]) for value in edges_of(arguments[0])), *twice]
    if get_origin(kind) is tuple:
        return [tuple([value] * len(arguments)) for value in edges_of(arguments[0])]
    if kind is type(None):
        return [None]
    return [
        edge
        for argument in arguments  # of a union, or the choices of a literal
        for edge in ([argument] if isinstance(argument, str | int) else edges_of(argument))
    ]


def settings_of(kind: type) -> Iterator[tuple[str, Any]]:
    types = get_type_hints(kind)
    for field in fields(kind):
        inner = settings_group(field)
        inner = inner or (types[field.name] if is_dataclass(types[field.name]) else None)
        if inner is None:
            yield field.name, types[field.name]
        else:
            for name, annotation in settings_of(inner):
                yield f"{field.name}.{name}", annotation


TRAINING = dict(settings_of(Config))


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config(SMALL, DIGITS)


def changed(config: Config, name: str, value: Any) -> Config:
    group, _, inner = name.rpartition(".")
    if not group:
        return replace(config, **{name: value})
    old = getattr(config, group)
    new = {**old, inner: value} if isinstance(old, dict) else replace(old, **{inner: value})
    return replace(config, **{group: new})


def works(config: Config) -> None:
    """The network and the process of the settings give finite numbers over all timesteps, forward and back."""
    scheduler = DDPMScheduler(**config.diffusion)
    unet = UNet2DModel(**config.model)
    with torch.no_grad():
        labels = None if config.model["num_class_embeds"] is None else torch.tensor([0])
        x = torch.randn(1, config.model["in_channels"], 8, 8, generator=torch.Generator().manual_seed(0))
        for t in (0, len(scheduler) - 1):
            assert unet(x, t, labels).sample.isfinite().all()
        for kind in (scheduler, DDIMScheduler.from_config(scheduler.config)):
            kind.set_timesteps(min(5, len(scheduler)))
            x_t = x
            for t in kind.timesteps:
                output = unet(x, t, labels).sample
                x_t = kind.step(output, t, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
            assert x_t.isfinite().all()


def taken(make: Callable[[], Any], name: str) -> Any:
    """What is made; None where it is refused in one sentence that names the setting."""
    try:
        return make()
    except ValueError as error:
        said = str(error)
    assert name in said
    assert "\n" not in said
    return None


@pytest.mark.parametrize("name", TRAINING)
def test_every_setting_of_a_run_works_or_is_refused_by_name(name: str, config: Config) -> None:
    for value in edges_of(TRAINING[name]):
        # Another setting may be the one to change: a switch, or the one that must go with this.
        other = taken(lambda value=value: changed(config, name, value), name)  # type: ignore[misc]
        if other is not None and name.startswith(("model.", "diffusion.")):
            works(other.following((1, 8, 8)))


COMMANDS = {
    SampleConfig: {"model": "m", "output": Path("o")},
    EvaluateConfig: {"reference": "digits", "output": Path("o"), "samples": "s", "metrics": ["fid"]},
    EmaConfig: {"run": Path("r"), "sigma_rel": 0.1},
    DemoConfig: {"model": "m"},
    ToyConfig: {},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in COMMANDS for name, _ in settings_of(kind)], ids=str
)
def test_every_setting_of_a_command_is_taken_or_refused_by_name(kind: Any, name: str) -> None:
    for value in edges_of(get_type_hints(kind)[name]):
        settings = {**COMMANDS[kind], name: value}
        taken(lambda settings=settings: kind(**settings), name.removeprefix("reference_"))  # type: ignore[misc]
