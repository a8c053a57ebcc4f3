"""Two processes with half the threads each against one process with all of them, and gradients accumulated over four
passes against one pass: the same global batch through the real training loop.

Each figure is of a run that a launcher starts, in images per second as its log has them, so start-up and the end of the
run do not count, nor does the first quarter of the steps. Memory is the peak of the first process, libraries included.
The network is the main job's, on its digits as they are and enlarged.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import in_turn, ratio_cell, ratio_of
from benchmarks.record import Bar, Record, table
from ddpm_hf.training.log import read_log

ROOT = Path(__file__).parents[1]
ONE, TWO, ACCUMULATED = "one process", "two processes", "one process, 4 passes a step"
SHORT = [
    *("--quiet", "--training.checkpoint_every", "null", "--training.sample_every", "null"),
    *("--evaluation.extractor", "null", "--evaluation.held_out_split", "null"),
    *("--evaluation.num_images", "2", "--evaluation.num_inference_steps", "1"),
]
ENLARGED = ["--data.resolution", "16", "--model.sample_size", "16"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long each run is."""
    parser.add_argument("--steps", type=int, default=400, help="of each run; a quarter of them on the enlarged digits")
    parser.set_defaults(rounds=5)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each network and way to train it."""
    threads = torch.get_num_threads()
    for network, steps, settings in (("8x8", arguments.steps, []), ("16x16", arguments.steps // 4, ENLARGED)):
        start = [*settings, "--training.steps", str(steps), "--training.log_every", str(steps // 4)]
        ways = {
            ONE: partial(trained, "cpu.yaml", threads, start),
            TWO: partial(trained, "cpu_2_processes.yaml", max(1, threads // 2), start),
            ACCUMULATED: partial(trained, "cpu.yaml", threads, [*start, "--training.gradient_accumulation_steps", "4"]),
        }
        found = in_turn(ways, arguments.rounds, is_warm=True)
        speeds = {way: [speed for speed, _ in figures] for way, figures in found.items()}
        for way, figures in found.items():
            row = {"images": network, "way": way, "images_per_second": statistics.median(speeds[way])}
            memory = statistics.median(mib for _, mib in figures)
            record.add({**row, "memory_mib": memory, **ratio_of(speeds[way], speeds[ONE])})


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the ways."""
    cells = [[row["images"], row["way"], row["images_per_second"], ratio_cell(row), row["memory_mib"]] for row in rows]
    return table(["images", "way", "images/s", "ratio", "memory, MiB"], cells)


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Two processes over one."""
    return [
        Bar(f"digits {row['images']}: images per second of {TWO} over {ONE}", row["ratio"], at_least=0.95)
        for row in rows
        if row["way"] == TWO
    ]


def trained(launcher: str, threads: int, settings: list[str]) -> tuple[float, float]:
    """Images per second and MiB of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{launcher}"),
            *("train_accelerate.py", "--output_dir", f"{folder}/run", "--threads", str(threads), *SHORT, *settings),
        ]
        offline = {"HF_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the run ended with status {done.returncode}: {done.stderr[-2000:]}")
        lines = read_log(Path(folder) / "run" / "metrics.jsonl")[1:]
    return statistics.median(line["images_per_second"] for line in lines), 1024 * lines[-1]["memory_gib"]
