"""What a suite leaves: its rows, with what they depend on; and the bars that they should reach."""

import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import ddpm_hf
from ddpm_hf.files import write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bar:
    """A figure and its limit, from above or from below.

    Args:
        what: The figure, in words.
        measured: Its value.
        at_most: The limit from above.
        at_least: The limit from below.
    """

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def wanted(self) -> str:
        """The limit, in words."""
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps to the limit."""
        above = self.at_most is None or self.measured <= self.at_most
        return above and (self.at_least is None or self.measured >= self.at_least)


class Record:
    """The rows of a suite and the file that they are in, which is whole after each row.

    Args:
        benchmark: The suite's name.
        arguments: The options that it runs with. Of an absolute path only the last part is kept.
        environment: What :func:`machine` returned.
        path: The file.

    Attributes:
        rows: What has been measured, in the types of JSON.
    """

    def __init__(
        self, benchmark: str, arguments: Mapping[str, Any], environment: Mapping[str, Any], path: Path
    ) -> None:
        settings = {key: _without_folder(value) for key, value in arguments.items()}
        self._head: dict[str, Any] = {"benchmark": benchmark, "arguments": settings, "machine": environment}
        self._path = path
        self.rows: list[dict[str, Any]] = []

    def resume(self) -> None:
        """Keep what earlier runs left in the file; without this the first new row replaces it.

        Raises:
            ValueError: they ran on another machine, or with other versions or threads.
        """
        if not self._path.exists():
            return
        found = json.loads(self._path.read_text())
        here, there = ({**machine, "date": None} for machine in (self._head["machine"], found["machine"]))
        different = [f"{key} {there.get(key)}" for key in here if here[key] != there.get(key)]
        if different:
            raise ValueError(
                f"{self._path} was measured with {', '.join(different)}; go on there, or give --output another file"
            )
        self.rows = found["results"]

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values, if there is one."""
        return next((row for row in self.rows if _plain(key).items() <= row.items()), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(_plain(row))
        write_json(self._path, {**self._head, "results": self.rows})


def machine(threads: int | None) -> dict[str, Any]:
    """What the figures depend on; sets the number of threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    cpu_info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "ddpm_hf": ddpm_hf.__version__,
        **{package: version(package) for package in ("torch", "diffusers")},
    }


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in markdown; numbers that are not integers with three digits, or with all those before the point."""
    lines = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation, for a table."""
    error = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{error}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".removesuffix(".")
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(row))
    return plain


def _without_folder(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name if value.is_absolute() else str(value)
    return value
