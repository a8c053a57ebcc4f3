"""Runs under real launchers, and quick ones of the fork server, to be struck."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from tests.chaos.strikes import Strike, fault_of, send
from tests.runs import TINY, Started

ROOT = Path(__file__).parents[2]
LIMIT = 120.0
"""Seconds within which a run has ended, struck or not; more is a standstill."""
LAUNCHERS: dict[str, tuple[list[str], int]] = {
    "fork server": ([], 1),
    "fork server, 2": ([], 2),
    "python": ([], 1),
    "accelerate": (["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"], 1),
    "accelerate, 2": (
        ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml"],
        2,
    ),
    "torchrun": (["-m", "torch.distributed.run", "--nproc_per_node", "1", "--rdzv_backend", "c10d"], 1),
    "torchrun, 2": (["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"], 2),
}


class Standstill(Exception):
    """A run did not end."""


def struck_run(launcher: str, arguments: list[object], folder: Path, strike: Strike | None, usual: float) -> list[int]:
    """Start a run, strike it, and wait until all its processes are gone.

    Args:
        launcher: A key of :data:`LAUNCHERS`.
        arguments: Of the script.
        folder: The run's; what it says is written beside it.
        strike: None for a run to its end.
        usual: Seconds that an unbroken run takes.

    Returns:
        The exit status of the launcher, or of each process where there is none.

    Raises:
        Standstill: some process did not end.
    """
    words, processes = LAUNCHERS[launcher]
    if launcher.startswith("fork server"):
        run = Started(arguments, folder, processes, None if strike is None else fault_of(strike))
        if strike is not None and strike.moment is not None:
            time.sleep(strike.moment * usual)
            pids = [process.pid or 0 for process in run.processes if process.is_alive()]
            if pids:
                send(strike, pids[0], pids)
        _wait(lambda: not any(process.is_alive() for process in run.processes))
        return [process.exitcode or 0 for process in run.processes]
    script = [str(ROOT / "train_accelerate.py")]
    if strike is not None and strike.instruction is not None:
        script = [str(Path(__file__).with_name("script.py")), json.dumps(asdict(strike))]
    command = [sys.executable, *words, *script, *TINY, "--output_dir", str(folder), *map(str, arguments)]
    with folder.with_name(f"{folder.name}.said").open("w") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        if strike is not None and strike.moment is not None:
            time.sleep(strike.moment * usual)
            ranks = [found for found in of_run(folder) if found != process.pid]
            if process.poll() is None:
                send(strike, process.pid, ranks or [process.pid])
        _wait(lambda: process.poll() is not None and not of_run(folder))
    return [process.returncode]


def of_run(folder: Path) -> list[int]:
    """The processes on this machine that speak of a run's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _wait(is_over: object) -> None:
    assert callable(is_over)
    start = time.monotonic()
    while not is_over():
        if time.monotonic() - start > LIMIT:
            raise Standstill
        time.sleep(0.05)
