"""Start-up: `import ddpm_hf`, every command's `--help`, and the main job up to the end of its first training
step, against importing torch and diffusers' schedulers and network.

Each is a process of its own, timed from its start. The first step is that of `accelerate launch train_accelerate.py`,
as its log has it: launcher, imports, data, features of the real images, and the step.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import in_turn, ratio_cell, ratio_of
from benchmarks.record import Bar, Record, table

ROOT = Path(__file__).parents[1]
BASE = "torch and diffusers' classes"
IMPORT = "import ddpm_hf"
FIRST_STEP = "the main job's first step"
COMMANDS = {
    BASE: ["-c", "import torch; from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel"],
    IMPORT: ["-c", "import ddpm_hf"],
    "train_accelerate.py --help": ["train_accelerate.py", "--help"],
    **{f"ddpm-hf-{name} --help": ["-m", f"ddpm_hf.cli.{name}", "--help"] for name in ("sample", "evaluate", "push")},
    "ddpm-hf-convert --help": ["-m", "ddpm_hf.cli.convert", "--help"],
}
MAIN_JOB = [
    *("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"),
    *("train_accelerate.py", "--quiet", "--training.log_every", "1"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fewer rounds: one takes a minute."""
    parser.set_defaults(rounds=7)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each command."""
    with tempfile.TemporaryDirectory() as folder:
        calls = {name: partial(seconds_of, command, Path(folder)) for name, command in COMMANDS.items()}
        calls[FIRST_STEP] = partial(seconds_to_first_step, Path(folder))
        found = in_turn(calls, arguments.rounds)
    for name, seconds in found.items():
        record.add({"what": name, "seconds": statistics.median(seconds), **ratio_of(seconds, found[BASE])})


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the commands."""
    cells = [(row["what"], row["seconds"], "" if row["what"] == BASE else ratio_cell(row)) for row in rows]
    return table(["what", "seconds", "ratio"], cells)


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """The import, and each command's help."""
    limits = {
        row["what"]: 1.1 if row["what"] == IMPORT else 1.5 for row in rows if row["what"] not in (BASE, FIRST_STEP)
    }
    return [
        Bar(f"{row['what']}, time over importing {BASE}", row["ratio"], at_most=limits[row["what"]])
        for row in rows
        if row["what"] in limits
    ]


def seconds_of(command: list[str], home: Path) -> float:
    """Seconds of one process of Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def seconds_to_first_step(home: Path) -> float:
    """Seconds until the main job's log has a line; the job is then killed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "metrics.jsonl"
        settings = ["--output_dir", folder, "--threads", str(torch.get_num_threads())]
        start = time.perf_counter()
        job = subprocess.Popen(
            [sys.executable, *MAIN_JOB, *settings],
            cwd=ROOT,
            env=environment(home),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not (log.exists() and log.stat().st_size):
                if job.poll() is not None:
                    raise RuntimeError(f"the main job ended before its first step, with status {job.returncode}")
                time.sleep(0.005)
            return time.perf_counter() - start
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def environment(home: Path) -> dict[str, str]:
    """No network, caches of its own, and as many threads as here."""
    own = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return {**os.environ, **own}
