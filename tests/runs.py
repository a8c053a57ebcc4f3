"""Training runs and other commands in processes of their own, tiny and quick to start, to be watched and killed.

A fork server that has imported everything starts a run in milliseconds. Runs with several processes find each other as
under a launcher, by its environment variables.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import train_accelerate
from ddpm_hf.signals import ended_by_signals

Fault = Callable[[], None]
"""Called in the process before the run begins; a function at the top level of a module."""

TINY = [
    *("--threads", "1", "--model.block_out_channels", "[8,8]", "--model.norm_num_groups", "4"),
    *("--training.batch_size", "16", "--training.log_every", "3", "--training.warmup_steps", "2"),
    *("--evaluation.num_images", "8", "--evaluation.num_inference_steps", "2", "--evaluation.grid_images", "4"),
    *("--evaluation.timestep_spacing", "trailing", "--training.sample_every", "null", "--quiet"),
]

SCORED_BRIEFLY = [
    *("--training.checkpoint_every", "2", "--training.log_every", "1", "--training.lr_schedule", "constant"),
    *("--evaluation.extractor", "digits", "--evaluation.every", "2"),
]

_context = multiprocessing.get_context("forkserver")
# With all that commands load once they have parsed their settings.
_context.set_forkserver_preload(["ddpm_hf.training.run", "ddpm_hf.cli.drawing", "ddpm_hf.cli.scoring", "tests.runs"])


class Started:
    """A run that has been started: its processes, and what they have said."""

    def __init__(
        self,
        arguments: Sequence[object],
        output_dir: Path,
        processes: int = 1,
        fault: Fault | None = None,
        main: Callable[[], None] = train_accelerate.main,
    ):
        self.folder = output_dir
        self._said = output_dir.with_name(f"{output_dir.name}.said")
        self._said.write_text("")
        own = [*TINY, "--output_dir", output_dir] if main is train_accelerate.main else ["--output", output_dir]
        argv = [main.__module__, *map(str, own), *map(str, arguments)]
        self.processes = [
            _context.Process(target=_run, args=(argv, variables, str(self._said), fault, main))
            for variables in worlds(processes)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int | None]:
        """The exit status of each process; minus the signal that killed it."""
        for process in self.processes:
            process.join(120)
            assert process.exitcode is not None, f"still running: {self.said()}"
        return [process.exitcode for process in self.processes]

    def wait_for_step(self, step: int) -> None:
        """Until a line of the log says that this many steps are done, or the run has ended."""
        while not any(line["step"] >= step for line in log_of(self.folder)) and self.processes[0].is_alive():
            time.sleep(0.002)

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        """A signal to one process, if it still lives."""
        if self.processes[rank].is_alive():
            os.kill(self.processes[rank].pid or 0, number)

    def said(self) -> str:
        """What all processes have printed."""
        return self._said.read_text()


def finished(output_dir: Path, *arguments: object, processes: int = 1, fault: Fault | None = None) -> Path:
    """Run to the end, which must be a good one."""
    run = Started(arguments, output_dir, processes, fault)
    assert run.wait() == [0] * processes, run.said()
    return output_dir


def ended(output_dir: Path, *arguments: object, processes: int = 1, fault: Fault | None = None) -> tuple[Any, str]:
    """Run to whatever end: its status, and all that was said."""
    run = Started(arguments, output_dir, processes, fault)
    return run.wait()[0], run.said()


def start_processes_of(processes: int, function: Callable[..., None], *arguments: object) -> None:
    """Call a function in several connected processes, which must all end well."""
    started = [_context.Process(target=_call, args=(world, function, arguments)) for world in worlds(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes


def log_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    whole = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in whole if line.endswith("\n")]


def measured(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on time and machine."""
    clock = ("images_per_second", "data_wait_share", "memory_gib")
    return [{key: value for key, value in line.items() if key not in clock} for line in log_of(run)]


def tensors_of(run: Path, step: int) -> dict[str, Tensor]:
    """Weights, averages and optimizer of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step}"
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def worlds(processes: int) -> list[dict[str, str]]:
    """The environment variables that a launcher gives to each process."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        {name: str(value) for name, value in {**world, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]


def _call(variables: dict[str, str], function: Callable[..., None], arguments: Sequence[object]) -> None:
    os.environ |= variables
    torch.set_num_threads(1)
    function(*arguments)


def _run(argv: list[str], variables: dict[str, str], said: str, fault: Fault | None, main: Callable[[], None]) -> None:
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = argv
    os.environ |= variables
    with ended_by_signals() if main is train_accelerate.main else nullcontext():
        if fault is not None:
            fault()
        main()
