"""Strategies: values for settings of any type, JSON of any form, and damages to the bytes of a file."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

EDGES = [0, 1, -1, 2, 3, 7, 8, 10, 16, 64, 255, 1000, 4000, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64]
FRACTIONS = [0.0, -0.0, 1e-300, 1e-8, 0.02, 0.5, 0.999, 1.0, 1.5, -0.1, 1e8, 1e308, math.inf, -math.inf, math.nan]
TEXTS = [
    "",
    " ",
    "null",
    "true",
    "None",
    "ü",
    "\u202e",
    "a\nb",
    "a" * 300,
    "'",
    '"',
    "{",
    "[",
    "%s",
    "-",
    "--x",
    "~",
    "..",
]

numbers = st.sampled_from(EDGES) | st.integers(-20, 100) | st.sampled_from(FRACTIONS) | st.floats()
scalars = numbers | st.booleans() | st.none() | st.sampled_from(TEXTS) | st.text(max_size=8)
json_values: SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def choices_in(annotation: Any) -> list[Any]:
    """The values that an annotation spells out, at any depth of it."""
    found: list[Any] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str | int) else choices_in(argument)
    return found


def values_for(annotation: Any) -> SearchStrategy[Any]:
    """Values for a setting: right ones and wrong ones of its type, and some of any other."""
    choices, name = choices_in(annotation), str(annotation)
    likely: list[SearchStrategy[Any]] = [st.sampled_from(choices)] if choices else []
    if annotation is bool or "bool" in name:
        likely.append(st.booleans())
    if annotation is int or "int" in name:
        likely += [st.sampled_from(EDGES), st.integers(-3, 40)]
    if annotation is float or "float" in name:
        likely += [st.sampled_from(FRACTIONS), st.floats(0, 1)]
    if "None" in name:
        likely.append(st.none())
    if any(word in name for word in ("list", "tuple", "Sequence")):
        items = st.sampled_from(choices) if choices else st.sampled_from(EDGES) | st.sampled_from(FRACTIONS)
        likely.append(st.lists(items, max_size=4))
    return st.one_of(*likely, scalars) if likely else scalars | st.lists(scalars, max_size=3)


def as_word(value: Any) -> str:
    """A value as somebody types it."""
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Damage:
    """A damage to one file.

    Args:
        where: Which of the files, as a share of their list.
        kind: What is done to it.
        place: Where in it, as a share of its length.
        value: What to write, for the kinds that write.
    """

    where: float
    kind: str
    place: float
    value: Any

    def file_in(self, files: list[Path]) -> Path:
        """The file that is meant."""
        return files[min(int(self.where * len(files)), len(files) - 1)]

    def to(self, path: Path) -> None:
        """Do it."""
        content = path.read_bytes()
        path.unlink()
        if self.kind != "lost":
            path.write_bytes(DAMAGES[self.kind](content, self.place, self.value))


def _bit(content: bytes, place: float, value: Any) -> bytes:
    changed = bytearray(content or b"\0")
    position = min(int(place * len(changed) * 8), len(changed) * 8 - 1)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def _byte(content: bytes, place: float, value: Any) -> bytes:
    position = int(place * max(len(content) - 1, 0))
    return content[:position] + b"\xff" + content[position + 1 :]


def _digit(content: bytes, place: float, value: Any) -> bytes:
    """Another digit in the place of one: what stays well-formed."""
    digits = [i for i, character in enumerate(content[:1_000_000]) if character in b"0123456789"]
    if not digits:
        return _bit(content, place, value)
    position = digits[min(int(place * len(digits)), len(digits) - 1)]
    return content[:position] + str((int(chr(content[position])) + 1) % 10).encode() + content[position + 1 :]


def _key(content: bytes, place: float, value: Any) -> bytes:
    """JSON in which one value, at any depth, is another one; other files lose a line."""
    try:
        parsed = json.loads(content)
    except ValueError:
        lines = content.splitlines(keepends=True)
        del lines[int(place * max(len(lines) - 1, 0)) :][:1]
        return b"".join(lines)
    holders: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        inner = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, child in inner:
            holders.append((item, key))
            walk(child)

    walk(parsed)
    if not holders:
        return json.dumps(value).encode()
    holder, key = holders[min(int(place * len(holders)), len(holders) - 1)]
    holder[key] = value
    return json.dumps(parsed).encode()


DAMAGES: dict[str, Callable[[bytes, float, Any], bytes]] = {
    "bit": _bit,
    "byte": _byte,
    "digit": _digit,
    "key": _key,
    "cut": lambda content, place, value: content[: int(place * len(content))],
    "longer": lambda content, place, value: content + b"\0" * 7,
    "gap": lambda content, place, value: (
        content[: int(place * len(content))] + content[int(place * len(content)) + 1 :]
    ),
    "empty": lambda content, place, value: b"",
    "other": lambda content, place, value: json.dumps(value).encode(),
    "zeros": lambda content, place, value: b"\0" * len(content),
}

damages = st.builds(
    Damage,
    where=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from([*DAMAGES, "lost"]),
    place=st.floats(0, 1, exclude_max=True),
    value=json_values,
)
