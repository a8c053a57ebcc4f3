"""docs/benchmarks.md, from the committed results alone."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, Bar, table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
SUITES = (
    "unet",
    "inference",
    "sampling",
    "loop",
    "allocator",
    "startup",
    "scaling",
    "quality",
    "few_steps",
    "five_steps",
    "cache",
    "hashing",
    "metrics",
    "ddim",
    "guidance",
    "objectives",
    "sizes",
    "augmentation",
    "averages",
    "memorisation",
    "fine_tuning",
    "blobs",
)
"""All there are, in the page's order."""
INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks report` from [benchmarks/results](../benchmarks/results); change nothing here by hand.

Where two things are compared they are called in turn, the order changing from round to round, and the median of the
rounds' own ratios counts, because a shared machine is faster in one minute than in the next. In parentheses are its
quartiles."""


def suite(name: str) -> Any:
    """The module of a suite."""
    return importlib.import_module(f"benchmarks.{name}")


def page() -> str:
    """The whole page."""
    found = {name: json.loads(result_of(name).read_text()) for name in SUITES if result_of(name).exists()}
    machines = [result["machine"] for result in found.values()]
    common = {key: value for key, value in machines[0].items() if all(other.get(key) == value for other in machines)}
    bars = [bar for name, result in found.items() for bar in bars_of(name, result["results"])]
    parts = [INTRODUCTION, f"All of it was measured with {_in_words(common)}.", "## What is wanted", _table_of(bars)]
    for name, result in found.items():
        own = {key: value for key, value in result["machine"].items() if key not in common}
        command = f"python -m benchmarks {name}{_options(result['arguments'])}"
        parts += [
            f"## `python -m benchmarks {name}`",
            inspect.getdoc(suite(name)) or "",
            suite(name).report(result["results"]),
            f"`{command}` ([figures](../benchmarks/results/{name}.json)): {_in_words(own) or 'as above'}.",
        ]
    return "\n\n".join(parts) + "\n"


def result_of(name: str) -> Path:
    """The file of a suite's committed rows."""
    return RESULTS / f"{name}.json"


def bars_of(name: str, rows: list[dict[str, Any]]) -> list[Bar]:
    """What is wanted of a suite; of most, nothing."""
    module = suite(name)
    return list(module.bars(rows)) if hasattr(module, "bars") else []


def _table_of(bars: list[Bar]) -> str:
    rows = [(bar.what, bar.wanted, bar.measured, "met" if bar.is_met else "**missed**") for bar in bars]
    return table(["what", "wanted", "measured", ""], rows)


def _options(arguments: dict[str, Any]) -> str:
    """Options as they are typed."""
    words = []
    for key, value in arguments.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        if value is not None and value is not False:
            words += [f"--{key}", *map(str, values)]
    return "".join(f" {word}" for word in words)


def _in_words(machine: dict[str, Any]) -> str:
    bare = {"cpu", "instructions", "date"}
    return ", ".join(str(value) if key in bare else f"{key} {value}" for key, value in machine.items())
