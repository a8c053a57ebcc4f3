"""What ends a process: SIGTERM, SIGINT, SIGHUP, or the end of the launcher that started it.

While a run takes its steps, `ddpm_hf.launch.StopSignal` lets the step end and saves. At any other time nothing is at
stake that the same command would not make again, and the process ends at once with one sentence. Imports the standard
library only, so that this holds before torch is loaded.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOPPED = 75
"""Exit status of a run that a signal stopped, whatever it had to save being saved: EX_TEMPFAIL, start it again."""

INITS = {"init", "systemd", "tini", "docker-init", "dumb-init", "catatonit", "s6-svscan", "runit"}
"""Names of programs that are the first process of a machine or container and run nothing themselves."""

SECONDS_BETWEEN_LOOKS = 0.5
"""How often a process looks whether its launcher is still there."""


def stop_signals() -> list[signal.Signals]:
    """The signals that ask for an end. Under nohup SIGHUP is ignored, and stays so; Windows has none."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    hears_hangup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [*wanted, signal.SIGHUP] if hears_hangup else wanted


def say(sentence: str) -> None:
    """A line on stderr from within a signal handler, said once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{sentence}\n".encode())


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Until the end of the program a signal ends it with one sentence, unless an inner handler takes the signal.

    The end of a launcher counts as SIGTERM. Once the context is left, the program is ending, and signals are ignored.
    For the main thread of a script's main module alone.
    """
    numbers, ending = stop_signals(), threading.Lock()

    def end(number: int, frame: FrameType | None) -> None:
        if not ending.acquire(blocking=False):  # the other thread, or a signal before, is at it
            return
        with suppress(Exception):
            sys.stdout.flush()
        name = signal.Signals(number).name
        say(f"{Path(sys.argv[0]).name}: stopped by {name}; the same command goes on from what is saved")
        os._exit(STOPPED)

    # Python calls a handler when the main thread comes back from what it waits for, which may be another process that
    # never answers. So a thread hears of each signal too.
    heard, hear = socket.socketpair()
    hear.setblocking(False)
    for number in numbers:
        signal.signal(number, end)
    signal.set_wakeup_fd(hear.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, end), name="signals", daemon=True).start()
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _watch(heard: socket.socket, end: Callable[[int, FrameType | None], None]) -> None:
    heard.settimeout(SECONDS_BETWEEN_LOOKS)
    parent = os.getppid() if _is_launched() else None
    is_orphan = parent == 1 and _is_init()
    while True:
        with suppress(TimeoutError):
            for number in heard.recv(64):
                if signal.getsignal(number) is end:
                    end(number, None)
        if is_orphan or (parent is not None and os.getppid() != parent):
            say("Note: the launcher of this run has ended, and so the run stops.")
            is_orphan, parent = False, None
            os.kill(os.getpid(), signal.SIGTERM)


def _is_launched() -> bool:
    """Whether torchrun or `accelerate launch` started this process, by variables that people do not set themselves."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_MODE" in os.environ


def _is_init() -> bool:
    """Whether the first process is one that takes in orphans, and not, as in a container, the launcher itself."""
    try:
        is_own = Path("/proc/self").readlink().name == str(os.getpid())  # not those of an outer container
        return is_own and Path("/proc/1/comm").read_text().strip() in INITS
    except OSError:
        return False
