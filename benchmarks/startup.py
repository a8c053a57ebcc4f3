"""Starting up: seconds until a command is done, in a new process each, over the time in which Python loads torch and
diffusers' scheduler and model classes.

"One step" is a main job of one step and one image, from the start of the process to the saved pipeline.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Bar, Record, table

BASE = "torch and diffusers"
PYTHON = {
    BASE: "import torch; from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel",
    "import ddpm_hf": "import ddpm_hf",
}
HELP = ("train_accelerate", *(f"ddpm_hf.cli.{name}" for name in ("sample", "evaluate", "push", "convert")))
ONE_STEP = [
    *("--training.steps", "1", "--training.sample_every", "null", "--evaluation.extractor", "null", "--quiet"),
    *("--evaluation.held_out_split", "null", "--evaluation.num_images", "1", "--evaluation.num_inference_steps", "1"),
]


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each command."""
    commands = {name: ["-c", code] for name, code in PYTHON.items()}
    commands |= {f"{module.removeprefix('ddpm_hf.cli.')} --help": ["-m", module, "--help"] for module in HELP}
    commands["one step"] = ["-m", "train_accelerate", *ONE_STEP, "--output_dir"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds + 1):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(seconds_of([*command, folder] if name == "one step" else command))
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values[1:], seconds[BASE][1:], strict=True)]
        record.add({"command": name, "seconds": statistics.median(values[1:]), "ratio": statistics.median(ratios)})


def seconds_of(command: list[str]) -> float:
    """Of a new Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[1], capture_output=True, check=True)
    return time.perf_counter() - start


def report(rows: list[dict[str, Any]]) -> str:
    """One table."""
    return table(["command", "seconds", "ratio"], [list(row.values()) for row in rows])


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Of the import, and of the slowest help."""
    ratios = {row["command"]: row["ratio"] for row in rows}
    slowest = max((ratio, command) for command, ratio in ratios.items() if command.endswith("--help"))
    return [
        Bar("import ddpm_hf over torch and diffusers' classes", ratios["import ddpm_hf"], at_most=1.1),
        Bar(f"the slowest --help ({slowest[1].split()[0]}) over the same", slowest[0], at_most=1.5),
    ]
