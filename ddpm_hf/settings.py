"""What all dataclasses of settings share: their checks, and their values in the types of YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuse the value of a setting.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(f"{name} is {value} and must be {expected}")


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
