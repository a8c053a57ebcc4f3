"""What may come of an input: a result, or one sentence of the product's own. All else is a fault."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.runs import worlds

PRODUCT = str(Path(__file__).parents[2] / "ddpm_hf")
LONGEST_SENTENCE = 1500
LIMIT = 45
"""Seconds after which an input stands still."""

Result = TypeVar("Result")
_context = multiprocessing.get_context("forkserver")


class Fault(AssertionError):
    """What must not come of an input.

    Args:
        kind: "traceback", "silent difference" or "standstill".
        what: What happened.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


@dataclass(frozen=True)
class Refused:
    """One sentence of the product's own, in place of a result."""

    sentence: str


def outcome_of(function: Callable[[], Result]) -> Result | Refused:
    """The result of a call, or the sentence with which the product refused it.

    Raises:
        Fault: another error than one that the product raised on purpose, or it took too long.
    """
    try:
        with _alarm(LIMIT):
            return function()
    except (ValueError, OSError, NotImplementedError, FloatingPointError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not raised_in.startswith(PRODUCT):
            raise Fault("traceback", f"{type(error).__name__} of {Path(raised_in).name}: {error}") from error
        return Refused(sentence(str(error)))
    except _TooLong:
        raise Fault("standstill", f"no answer within {LIMIT} s") from None
    except Fault:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} of {Path(place.filename).name}:{place.lineno}: {error}"
        raise Fault("traceback", what) from error


def sentence(text: str) -> str:
    """``text``, which must be something to read in one line.

    Raises:
        Fault: it is empty, a page, or somebody's traceback.
    """
    is_readable = text.strip() and "\n" not in text.strip() and "Traceback" not in text
    if not is_readable or len(text) > LONGEST_SENTENCE:
        raise Fault("traceback", f"no sentence: {text[:500]!r}")
    return text


def status_of(main: Callable[[], None], arguments: Sequence[object], said: Path, processes: int = 1) -> tuple[int, str]:
    """Run a command to its end in processes of its own: its status, and all that it said.

    Args:
        main: What the command runs; a function at the top level of a module.
        arguments: The words of the command line.
        said: A file for what it says; its folder is the command's working directory.

    Raises:
        Fault: a traceback, an end without a word, or none in time.
    """
    said.write_text("")
    words = [main.__module__, *map(str, arguments)]
    started = [
        _context.Process(target=_run, args=(words, variables, str(said), main)) for variables in worlds(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(LIMIT)
        if process.exitcode is None:
            for other in started:
                other.kill()
            raise Fault("standstill", f"no end within {LIMIT} s: {said.read_text()[-500:]}")
    text = said.read_text(errors="backslashreplace")
    if "Traceback (most recent call last)" in text:
        raise Fault("traceback", text[-1500:])
    statuses = [process.exitcode or 0 for process in started]
    status = next((status for status in statuses if status), 0)
    if status < 0:
        raise Fault("traceback", f"ended by {signal.Signals(-status).name}: {text[-500:]}")
    if status and text.count(": error: ") != 1:
        raise Fault("traceback", f"status {status} and {text.count(': error: ')} sentences: {text[-500:]}")
    return status, text


class _TooLong(Exception):
    pass


@contextmanager
def _alarm(seconds: int) -> Any:
    def ring(number: int, frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _run(words: list[str], variables: dict[str, str], said: str, main: Callable[[], None]) -> None:
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(Path(said).parent)
    sys.argv = words
    os.environ |= variables
    main()
