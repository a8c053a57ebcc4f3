"""Rounds of Hypothesis over targets, until a time is over; each fault is kept once, in its smallest form."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from tests.fuzz.outcomes import Fault


class _Over(KeyboardInterrupt):
    """The time is over; Hypothesis lets nothing else through at once."""


Check = Callable[[Any], None]


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Args:
        examples: Inputs.
        prepare: From an empty folder to the check of one input, which raises :class:`Fault`.
        per_round: Inputs of a round; few where one takes long.
    """

    examples: SearchStrategy[Any]
    prepare: Callable[[Path], Check]
    per_round: int = 100


@dataclass
class Counts:
    """What came of a target's inputs."""

    inputs: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)


def run_for(seconds: float, targets: Mapping[str, Target], folder: Path, first_seed: int) -> dict[str, Counts]:
    """Give each target its rounds, the one that had the least time first, until the time is over."""
    found = {name: Counts() for name in targets}
    checks: dict[str, Check] = {}
    end, number = time.perf_counter() + seconds, first_seed
    while time.perf_counter() < end:
        name = min(found, key=lambda name: found[name].seconds)
        target, counts, started = targets[name], found[name], time.perf_counter()
        if name not in checks:
            (folder / name).mkdir(parents=True)
            checks[name] = target.prepare(folder / name)
        one_round(target, checks[name], counts, number, end)
        number += 1
        counts.seconds += time.perf_counter() - started
    return found


def one_round(target: Target, check: Check, counts: Counts, number: int, end: float = float("inf")) -> None:
    """Some inputs; a fault is made small, told and kept."""
    smallest: dict[str, Any] = {}

    def counted(example: Any) -> None:
        if time.perf_counter() > end:
            raise _Over
        counts.inputs += 1
        with ExitStack() as stack:
            for redirected in (redirect_stdout, redirect_stderr):
                stack.enter_context(redirected(StringIO()))  # what is said in this process is no news
            try:
                check(example)
            except Fault as fault:
                if _name_of(fault) in counts.faults:
                    return  # it is told already, and there may be others
                smallest["example"], smallest["fault"] = example, fault
                raise

    options = settings(
        max_examples=target.per_round,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if target.per_round > 20 else (Phase.generate,),
        report_multiple_bugs=False,
    )
    try:
        options(seed(number)(given(target.examples)(counted)))()
    except (Fault, Flaky, _Over):
        if smallest:
            fault: Fault = smallest["fault"]
            counts.kinds[fault.kind] += 1
            counts.faults[_name_of(fault)] = f"{fault}\n    from {smallest['example']!r}"
            print(f"FAULT {counts.faults[_name_of(fault)]}\n", file=sys.stderr, flush=True)


def _name_of(fault: Fault) -> str:
    """What faults of one cause share: the beginning of their message, without numbers."""
    return re.sub(r"[\d.e+-]+|\[.*|'.*", "#", str(fault))[:90]


def table(found: Mapping[str, Counts]) -> str:
    """Inputs and faults of each target, as Markdown."""
    kinds = ("traceback", "silent difference", "standstill")
    lines = ["| target | inputs | seconds | tracebacks | silent differences | standstills |", "|" + "---|" * 6]
    for name, counts in found.items():
        cells = [name, counts.inputs, f"{counts.seconds:.0f}", *(counts.kinds[kind] for kind in kinds)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    total = [sum(counts.kinds[kind] for counts in found.values()) for kind in kinds]
    cells = ["all", sum(counts.inputs for counts in found.values()), f"{sum(c.seconds for c in found.values()):.0f}"]
    return "\n".join([*lines, "| " + " | ".join(map(str, [*cells, *total])) + " |"])
