"""What dataclasses of settings share: checks, their values in the types of YAML, and how a constructor becomes one."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints


def check(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuse the value of a setting.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(f"{name} is {value} and must be {expected}")


@contextmanager
def named(prefix: str) -> Iterator[None]:
    """Put a prefix before the message of a ValueError, such as the group of the setting that it begins with."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def check_seed(name: str, seed: int, num_images: int = 1) -> None:
    """Refuse a first seed unless it and those of the images after it lie where torch, numpy and parquet all take them.

    Raises:
        ValueError: it is negative or too large.
    """
    check(seed >= 0, name, seed, "at least 0")
    check(seed + num_images <= 2**63, name, seed, f"at most {2**63 - num_images}")


def constructor_settings(place: str) -> type:
    """The keyword arguments of a class's constructor as a dataclass, explained by the class's docstring.

    They are read from the source, so nothing that the class needs is loaded. Annotations may use built-in types and
    `Sequence`; defaults are literals.

    Args:
        place: "module:class".
    """
    module, _, name = place.partition(":")
    spec = find_spec(module)
    source = None if spec is None or spec.origin is None else Path(spec.origin).read_text(encoding="utf-8")
    assert source is not None, f"{module} is not there"
    body = ast.parse(source).body
    kind = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments = init.args.args[1:]
    annotations = {argument.arg: ast.unparse(argument.annotation) for argument in arguments if argument.annotation}
    types = get_type_hints(SimpleNamespace(__annotations__=annotations), {"Sequence": Sequence})
    defaults = [ast.literal_eval(default) for default in init.args.defaults]
    fields = [
        (argument.arg, types[argument.arg], field(default=default))
        for argument, default in zip(arguments, defaults, strict=True)
    ]
    return make_dataclass(name, fields, namespace={"__doc__": ast.get_docstring(kind)}, frozen=True)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their names on the command line, such as ``training.steps``."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        inside = isinstance(value, Mapping)
        named |= {f"{key}.{inner}": item for inner, item in value.items()} if inside else {key: value}
    return named


def plain(value: Any) -> Any:
    """``value`` in the types of YAML."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
