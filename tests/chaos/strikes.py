"""What strikes a run: a signal to some of its processes, at a moment or at the n-th call of a function."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

# Where names and contents of files change.
INSTRUCTIONS: dict[str, tuple[Any, str]] = {
    "rename": (os, "rename"),
    "replace": (os, "replace"),
    "fsync": (os, "fsync"),
    "unlink": (os, "unlink"),
    "rmdir": (os, "rmdir"),
    "rmtree": (shutil, "rmtree"),
    "truncate": (os, "ftruncate"),
}
SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
TARGETS = ["launcher", "one rank", "all", "storm"]


@dataclass(frozen=True)
class Strike:
    """A signal, to whom, and when.

    Args:
        number: The signal.
        target: The launcher, one of its ranks, all of them at once, or all of them again and again.
        moment: As a share of an unbroken run's time; None where an instruction says when.
        instruction: A key of :data:`INSTRUCTIONS`, at whose ``call``-th call a process signals itself.
        call: From 1.
    """

    number: signal.Signals
    target: str
    moment: float | None = None
    instruction: str | None = None
    call: int = 0

    @property
    def name(self) -> str:
        """Its kind, for the table of counts."""
        return f"{self.number.name} {f'at {self.instruction}' if self.instruction else f'to {self.target}'}"


def random_strike(chance: random.Random) -> Strike:
    number = chance.choice(SIGNALS)
    if chance.random() < 0.5:
        instruction = chance.choice(list(INSTRUCTIONS))
        return Strike(number, "itself", instruction=instruction, call=chance.choice([1, 2, 3, 5, 8, 13, 21, 34, 55]))
    return Strike(number, chance.choice(TARGETS), moment=chance.random())


def at_instruction(strike: Strike) -> None:
    """Have this process, if it is the first of its run, signal itself before a call of the strike's function."""
    if strike.instruction is None or os.environ.get("RANK", "0") != "0":
        return
    module, name = INSTRUCTIONS[strike.instruction]
    function: Callable[..., Any] = getattr(module, name)
    calls = [0]

    def struck(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == strike.call:
            os.kill(os.getpid(), strike.number)
        return function(*arguments, **options)

    setattr(module, name, struck)


def fault_of(strike: Strike) -> Callable[[], None]:
    """The same as a function that can be sent to another process."""
    return partial(at_instruction, strike)


def send(strike: Strike, launcher: int, ranks: list[int]) -> None:
    """Signal the processes that the strike aims at, as far as they live."""
    everyone = list(dict.fromkeys([launcher, *ranks]))
    aimed = {"launcher": [launcher], "one rank": [ranks[-1]]}.get(strike.target, everyone)
    for _ in range(20 if strike.target == "storm" else 1):
        for pid in aimed:
            try:
                os.kill(pid, strike.number)
            except ProcessLookupError:
                continue
        if strike.target == "storm":
            time.sleep(0.01)
