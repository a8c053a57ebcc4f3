"""How far the work is, told in one way everywhere: by a bar in a terminal, and without one by a line now and then.

Lines go through Python's logging, as INFO of loggers below ``ddpm_hf``, so that a notebook or a service can send them
where it wants; ``logging.basicConfig(level="INFO")`` shows them. The commands print them to stderr by themselves, where
that is not a terminal (`speak_in_lines`).
"""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

SHORTEST = 10.0
"""Seconds between two lines; of long work a tenth of the time that it has taken so far, so that no log is flooded."""

LONGEST = 600.0
"""Seconds after which there is a line in any case."""

logger = logging.getLogger(__name__)


def has_terminal() -> bool:
    """Whether stderr shows bars: it is a terminal, or the output of a notebook's cell."""
    return sys.stderr is not None and (sys.stderr.isatty() or type(sys.stderr).__module__ == "ipykernel.iostream")


def speak_in_lines(quiet: bool) -> None:
    """Have this command print lines to stderr, but in a terminal, and where logging has been arranged already.

    Args:
        quiet: Change nothing, so that only warnings are printed.
    """
    package = logging.getLogger("ddpm_hf")
    if quiet or has_terminal() or package.hasHandlers():
        return
    handler = logging.StreamHandler()  # which flushes each line
    handler.setFormatter(logging.Formatter("%(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False  # a library that arranges the root's logging later would print each line again


def bar_of(name: str, total: int, unit: str, shown: bool, **options: Any) -> tqdm:
    """A bar, which only a terminal shows.

    Args:
        name: What is done, such as "sampling".
        total: How many units of work there are.
        unit: What is counted, such as "image".
        shown: Whether this process tells of the work.
        options: tqdm's other ones.
    """
    return tqdm(total=total, desc=name, unit=unit, disable=not (shown and has_terminal()), **options)


class Progress:
    """Work under way, told of from the start of the context to its end.

    Without a terminal a thread of its own gives the lines, also while one unit of the work takes long. Work that is
    done before the first line is due gives none.

    Args:
        name: What is done, such as "sampling".
        total: How many units of work there are.
        unit: What is counted, such as "image"; its plural ends with s.
        shown: Whether this process tells of the work.
        options: tqdm's other ones, for the bar.

    Attributes:
        done: Units that are done.
    """

    def __init__(self, name: str, total: int, unit: str, shown: bool, **options: Any) -> None:
        self.done = 0
        self._name, self._total, self._unit = name, total, unit
        self._bar = bar_of(name, total, unit, shown, **options)
        self._since, self._has_spoken, self._ended = time.monotonic(), False, threading.Event()
        self._thread: threading.Thread | None = None
        if shown and not has_terminal() and logger.isEnabledFor(logging.INFO):
            self._thread = threading.Thread(target=self._speak, name=f"progress of {name}", daemon=True)

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            if self._has_spoken and error is None:
                taken = duration(time.monotonic() - self._since)
                logger.info("%s: %s in %s", self._name, self._counted(self.done), taken)

    def advance(self, units: int = 1) -> None:
        """Count units as done; those above the total do not count."""
        units = min(units, self._total - self.done)
        self.done += units
        self._bar.update(units)

    def _speak(self) -> None:
        pause = SHORTEST
        while not self._ended.wait(pause):
            taken, done = time.monotonic() - self._since, self.done
            parts = [f"{self._name}: {done:,} of {self._counted(self._total)}"]
            if done:
                parts += [rate(done / taken, self._unit), f"{duration(taken / done * (self._total - done))} left"]
            else:
                parts += [f"{duration(taken)} so far"]
            logger.info(", ".join(parts))
            self._has_spoken = True
            pause = min(LONGEST, max(SHORTEST, taken / 10))

    def _counted(self, units: int) -> str:
        return f"{units:,} {self._unit}{'' if units == 1 else 's'}"


def rate(per_second: float, unit: str) -> str:
    """Units in a second, for a person to read."""
    return f"{per_second:,.0f} {unit}s/s" if per_second >= 100 else f"{per_second:.3g} {unit}s/s"


def duration(seconds: float) -> str:
    """A time, for a person to read."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6_000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3_600:.1f} h" if seconds < 360_000 else f"{seconds / 86_400:.1f} days"
