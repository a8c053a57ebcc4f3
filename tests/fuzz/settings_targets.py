"""Settings of the commands: each value is taken or refused in one sentence, and what is taken works."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import train_accelerate
from ddpm_hf.cli.convert import ConvertConfig
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.cli.push import PushConfig
from ddpm_hf.cli.sample import SampleConfig
from ddpm_hf.command_line import parse_config, parse_settings
from ddpm_hf.settings import settings_group
from ddpm_hf.toy.settings import ToyConfig
from ddpm_hf.training.settings import Config
from tests.fuzz.outcomes import Fault, sentence, status_of
from tests.fuzz.rounds import Check, Target
from tests.fuzz.values import as_word, json_values, values_for
from tests.runs import TINY

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "digits.yaml"
Changes = dict[str, Any]


def annotations_of(kind: type) -> dict[str, Any]:
    """The type of each setting, by its name on the command line."""
    types, found = get_type_hints(kind), dict[str, Any]()
    for field in fields(kind):
        group = settings_group(field)
        inner = group or types[field.name]
        if is_dataclass(inner):
            found |= {f"{field.name}.{name}": annotation for name, annotation in annotations_of(inner).items()}  # type: ignore[arg-type]
        else:
            found[field.name] = types[field.name]
    return found


TRAINING = annotations_of(Config)


def changes_of(annotations: dict[str, Any], most: int = 3) -> SearchStrategy[Changes]:
    """A few settings with values of any kind."""
    one = st.sampled_from(sorted(annotations)).flatmap(
        lambda name: st.tuples(st.just(name), values_for(annotations[name]))
    )
    return st.lists(one, min_size=1, max_size=most).map(dict)


def parsed(parse: Callable[[], Any]) -> Any:
    """The settings; None where they were refused in one sentence, which is looked at."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return parse()
    except SystemExit as end:
        if end.code == 0:
            return None
        text = said.getvalue()
        if end.code != 2 or text.count(": error: ") != 1:
            raise Fault("traceback", f"status {end.code}: {text[-500:]}") from None
        sentence(text)
        return None
    except Exception as error:
        raise Fault("traceback", f"{type(error).__name__}: {error}") from error


def words_of(changes: Changes) -> list[str]:
    return [f"--{name}={as_word(value)}" for name, value in changes.items()]


# Runs


def _is_quick(changes: Changes) -> bool:
    """Whether a run with these settings is one of seconds and stays on this machine."""
    slow = ("training.steps", "training.compile", "training.trackers", "push_to_hub", "hub_model_id", "output_dir")

    def is_small(value: Any) -> bool:
        if isinstance(value, list):
            return len(value) < 5 and all(map(is_small, value))
        return isinstance(value, str | bool | None) or abs(value) <= 64 or value != value

    return not set(changes) & set(slow) and all(map(is_small, changes.values()))


def _runs(folder: Path) -> Check:
    numbers = iter(range(10**9))

    def check(changes: Changes) -> None:
        words = [*TINY, "--training.steps", "2", *words_of(changes)]
        if parsed(lambda: parse_config(words, RECIPE)) is None or not _is_quick(changes):
            return
        place = folder / str(next(numbers))
        place.mkdir()
        status_of(
            train_accelerate.main, [*words, f"--config={RECIPE}", f"--output_dir={place / 'run'}"], place / "said"
        )

    return check


# Commands that need no run to be refused

COMMANDS: dict[str, tuple[type, list[str], bool]] = {
    "sample": (SampleConfig, ["--model=m", "--output=o"], False),
    "evaluate": (EvaluateConfig, ["--reference=digits", "--output=o", "--samples=s"], False),
    "push": (PushConfig, [], False),
    "convert": (ConvertConfig, [], False),
    "toy": (ToyConfig, [], False),
}


def _commands(folder: Path) -> Check:
    def check(example: tuple[str, Changes]) -> None:
        name, changes = example
        kind, needed, _ = COMMANDS[name]
        parsed(lambda: parse_settings(kind, [*needed, *words_of(changes)], name))

    return check


# Recipes


def _recipes(folder: Path) -> Check:
    recipe = folder / "recipe.yaml"
    known = RECIPE.read_bytes()

    def check(example: Any) -> None:
        if isinstance(example, bytes):
            recipe.write_bytes(example)
        elif isinstance(example, tuple):
            encoding, position = example
            changed = known[: int(position * len(known))].decode() + "ü: é # ß\n"
            recipe.write_bytes(changed.encode(encoding, errors="replace"))
        else:
            nested: dict[str, Any] = {}
            for key, value in example.items():
                group, _, inner = key.rpartition(".")
                place = nested.setdefault(group, {}) if group else nested
                if isinstance(place, dict):
                    place[inner] = value
            recipe.write_text(yaml.safe_dump(nested, allow_unicode=True))
        argv = sys.argv
        try:
            sys.argv = ["train_accelerate.py"]
            parsed(lambda: parse_config([f"--config={recipe}"], RECIPE))
        finally:
            sys.argv = argv

    return check


_recipe_files = (
    st.binary(max_size=60)
    | st.tuples(st.sampled_from(["latin-1", "utf-16", "utf-32", "utf-8-sig", "cp1252"]), st.floats(0, 1))
    | changes_of(TRAINING, 5)
    | st.dictionaries(st.sampled_from([*sorted(TRAINING), "training", "model", "data"]), json_values, max_size=4)
    | st.text(max_size=80).map(lambda text: text.encode(errors="replace"))
)

TARGETS = {
    "settings of a run": Target(changes_of(TRAINING), _runs, per_round=20),
    "settings of the commands": Target(
        st.sampled_from(sorted(COMMANDS)).flatmap(
            lambda name: st.tuples(st.just(name), changes_of(annotations_of(COMMANDS[name][0])))
        ),
        _commands,
    ),
    "recipes": Target(_recipe_files, _recipes),
}
