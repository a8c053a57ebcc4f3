"""What dataclasses of settings share: checks, their values in the types of YAML, and how a constructor becomes one."""

import ast
import operator
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, field, make_dataclass
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let a ValueError name the user's settings: each name in its message becomes that of the mapping."""
    try:
        yield
    except ValueError as error:
        pattern = rf"(?<![\w.'])({'|'.join(map(re.escape, names))})(?![\w'])"
        raise ValueError(re.sub(pattern, lambda found: names[found[1]], str(error))) from None


def check_types(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """See that values are of the types of their annotations; what has no value or no annotation is left out.

    Numbers of numpy are numbers, a truth value is none, and neither is "not a number". Lists stand for tuples too, as
    in JSON.

    Raises:
        ValueError: naming the first that is not, in one sentence that begins with its name.
    """
    for name, kind in types.items():
        if name in values and not _is_of(values[name], kind):
            raise ValueError(f"{name}={shown(values[name])} must be {_in_words(kind)}.")


def as_int(name: str, value: Any) -> int:
    """One integer of an int, a numpy integer or an integer tensor of one element.

    Raises:
        ValueError: it is anything else.
    """
    is_truth = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if not is_truth:
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{name}={shown(value)} is not one integer.")


def as_ints(name: str, values: Any) -> list[int]:
    """The integers of a list, a tuple, a range, or an array or tensor of one dimension.

    Raises:
        ValueError: it is anything else, or so long that it is a mistake.
    """
    is_row = getattr(values, "ndim", 0) == 1 and hasattr(values, "tolist")
    if not is_row and not (isinstance(values, Sequence) and not isinstance(values, str | bytes)):
        raise ValueError(f"{name}={shown(values)} must be a list of integers, such as [0, 1] or range(2).")
    if isinstance(values, range):
        is_long = values[MOST_INTEGERS : MOST_INTEGERS + 1] != range(0)
    else:
        is_long = len(values) > MOST_INTEGERS
    if is_long:
        raise ValueError(f"{name} holds more than {MOST_INTEGERS:,} integers; give fewer at a time.")
    return [as_int(f"an entry of {name}", value) for value in (values.tolist() if is_row else values)]


ColourMap = Literal["viridis", "magma", "inferno", "cividis", "turbo"]
"""Colours for one channel, by matplotlib's names."""

MOST_INTEGERS = 10_000_000


def shown(value: object) -> str:
    """A value for a sentence: on one line, and cut where it is long."""
    return reprlib.repr(value).replace("\n", " ")


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) in (tuple, list, Sequence):
        value = value.tolist() if hasattr(value, "tolist") else value
        is_list, inner = isinstance(value, list | tuple), get_args(kind)
        of_any_length = get_origin(kind) is not tuple or inner[-1] is Ellipsis
        is_list = is_list and (of_any_length or len(value) == len(inner))
        return is_list and all(_is_of(item, inner[0]) for item in value)
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        # No whole number beyond 64 bits means anything as a float; torch converts none.
        return is_number and value == value and not (kind is float and isinstance(value, int) and abs(value) >= 2**63)
    is_plain = kind is not Any and isinstance(kind, type) and get_origin(kind) is None
    return not is_plain or isinstance(value, kind)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", NoneType: "None"}


def _in_words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) in (tuple, list, Sequence):
        inner = get_args(kind)
        of_any_length = get_origin(kind) is not tuple or inner[-1] is Ellipsis
        number = "" if of_any_length else f"{len(inner)} "
        return f"a list of {number}{_in_words(inner[0]).removeprefix('a ')}s"
    return _KINDS.get(kind, str(kind))


def check_seed(name: str, seed: int, num_images: int = 1) -> None:
    """Refuse a first seed unless it and those of the images after it lie where torch, numpy and parquet all take them.

    Raises:
        ValueError: it is negative or too large.
    """
    check(seed >= 0, name, seed, "at least 0")
    check(seed + num_images <= 2**63, name, seed, f"at most {2**63 - num_images}")


def constructor_settings(place: str, following: Collection[str] = ()) -> type:
    """The keyword arguments of a class's constructor as a dataclass, explained by the class's docstring.

    They are read from the source, so nothing that the class needs is loaded. Annotations may use built-in types and
    `Sequence`; defaults are literals.

    Args:
        place: "module:class".
        following: Arguments that may also be None here, which stands for what the images want; the docstring says so.
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
    types |= {argument: types[argument] | None for argument in following}
    fields = [
        (argument.arg, types[argument.arg], field(default=default))
        for argument, default in zip(arguments, defaults, strict=True)
    ]
    doc = ast.get_docstring(kind) or ""
    for argument in following:
        doc = doc.replace(f"\n    {argument}: ", f"\n    {argument}: null follows the images; else ")
    return make_dataclass(name, fields, namespace={"__doc__": doc}, frozen=True)


def settings_group(group: Field[Any]) -> type | None:
    """The settings of a field that stands for a class's constructor; None of any other field."""
    if "constructor" not in group.metadata:
        return None
    return constructor_settings(group.metadata["constructor"], group.metadata.get("following", ()))


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
