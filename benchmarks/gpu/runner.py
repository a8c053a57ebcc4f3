"""Runs the parts one after the other; each survives the failure of another."""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import network, race, rates, truth
from benchmarks.gpu.device import the_device
from benchmarks.gpu.sizes import FULL, TINY
from benchmarks.record import RESULTS, Record, machine, table

PARTS = {"truth": truth, "network": network, "rates": rates, "race": race}
SHARES = {"truth": 0.15, "network": 0.55, "rates": 0.65, "race": 1.0}
"""Of all the minutes, when a part should be over; what has begun is ended."""
PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
OF_PAGE = RESULTS / "gpu"
RESERVE = 5.0
"""Seconds for the tables."""


def main(options: list[str]) -> None:
    """`python -m benchmarks gpu`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="of everything; the race has what is left")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.json and of the grids")
    parser.add_argument(
        "--state", type=Path, help="folder in which the race is saved, a gigabyte; in OUTPUT if not given"
    )
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's parquet files; random images without it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="everything in small, to test it, also on a CPU")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's own number when not given")
    parser.add_argument("--report", action="store_true", help="only write docs/gpu.md, from benchmarks/results/gpu")
    arguments = parser.parse_args(options)
    if arguments.report:
        PAGE.write_text(page())
        return
    begun = time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = {key: vars(arguments)[key] for key in ("minutes", "parts", "tiny")}
    record = Record("gpu", settings, machine(arguments.threads) | gpu(), arguments.output / "gpu.json")
    record.resume()
    budget = 60 * arguments.minutes - RESERVE
    measure(
        arguments, record, {name: begun + (1 if arguments.tiny else share) * budget for name, share in SHARES.items()}
    )
    print(f"\n{report(record.rows)}\n\n{time.perf_counter() - begun:.0f} s in all", flush=True)


def gpu() -> dict[str, Any]:
    """What the figures depend on besides the machine."""
    if not torch.cuda.is_available():
        return {"gpu": "none"}
    of_gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": of_gpu.name,
        "gpu_memory_gib": round(of_gpu.total_memory / 2**30),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def measure(arguments: argparse.Namespace, record: Record, ends: dict[str, float]) -> None:
    """All the parts that are asked for."""
    sizes, device = TINY if arguments.tiny else FULL, the_device()

    def attempt(key: dict[str, Any], call: Callable[[], dict[str, Any]]) -> None:
        """A row of what the call finds, or of its error; none if the row is there already."""
        if record.find(**key) is not None:
            return
        start = time.perf_counter()
        with Guarded(key, record):
            found = call()
            record.add({**key, **found})
            print(f"{time.perf_counter() - start:6.1f} s  {' '.join(map(str, key.values()))}", flush=True)

    for name in arguments.parts:
        end = ends[name]
        with Guarded({"part": "error", "in": name}, record):
            if name == "network":
                network.run(sizes, device, record, attempt, partial(is_left, end))
            elif name == "race":
                state = arguments.state or arguments.output / "state"
                race.run(sizes, device, record, attempt, arguments.data, arguments.output, state, end)
            else:
                PARTS[name].run(sizes, device, record, attempt)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def is_left(end: float, seconds: float) -> bool:
    """Whether there are so many seconds until the end."""
    return time.perf_counter() + seconds < end


class Guarded:
    """Turns an error within it into a row with its last lines, and goes on.

    Args:
        key: of the row.
        record: where it goes.
    """

    def __init__(self, key: dict[str, Any], record: Record) -> None:
        self._key, self._record = key, record

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        traceback.print_exception(error)
        self._record.add({**self._key, "error": f"{type(error).__name__}: {error}"[:500]})
        return True


def report(rows: list[dict[str, Any]]) -> str:
    """The tables of all parts, and what failed."""
    parts = [f"### {name}\n\n{module.report(rows)}" for name, module in PARTS.items()]
    failed = [
        [" ".join(str(v) for k, v in row.items() if k != "error"), row["error"]] for row in rows if "error" in row
    ]
    return "\n\n".join([*parts, *([f"### failed\n\n{table(['what', 'error'], failed)}"] if failed else [])])


def page() -> str:
    """docs/gpu.md, from the committed results alone."""
    lines = [
        "# On a GPU",
        "Written by `python -m benchmarks gpu --report` from [benchmarks/results/gpu](../benchmarks/results/gpu); "
        "change nothing here by hand. After 100 s of training each, ours and the plain loop:",
        "![Ours](gpu-cifar10-ours.png) ![The plain loop](gpu-cifar10-plain.png)",
    ]
    for name, module in PARTS.items():
        lines += [f"`{name}`: {(module.__doc__ or '').strip()}"]
    for path in sorted(OF_PAGE.glob("*.json")):
        content = json.loads(path.read_text())
        environment = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
        lines += [f"## {path.stem}", f"{environment}."]
        if any(row.get("run", 1) > 1 for row in content["results"]):
            lines.append(
                "Measured in more than one run, each on a machine of its own of this kind (`run` in each row of the "
                "file); the ceilings are the first run's. What is compared in a row was called in turn in one run."
            )
        lines.append(report(content["results"]))
    return "\n\n".join(lines) + "\n"
