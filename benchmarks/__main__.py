"""Run a benchmark, print its table and keep the figures: `python -m benchmarks unet`."""

import argparse
import json
from pathlib import Path

from benchmarks import loop, neighbours, sampling, unet
from benchmarks.measure import machine

BENCHMARKS = {"loop": loop, "neighbours": neighbours, "sampling": sampling, "unet": unet}

parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed against diffusers, as ratios.")
parser.add_argument("name", choices=BENCHMARKS)
parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds; the median counts")
parser.add_argument("--threads", type=int, default=None, help="torch's own number when not given")
parser.add_argument("--output", type=Path, default=None, help="where to write; benchmarks/results/NAME.json by default")
arguments = parser.parse_args()

environment = machine(arguments.threads)
results = BENCHMARKS[arguments.name].run(arguments.rounds)
output = arguments.output or Path(__file__).parent / "results" / f"{arguments.name}.json"
output.parent.mkdir(parents=True, exist_ok=True)
report = {"benchmark": arguments.name, "rounds": arguments.rounds, "machine": environment, "results": results}
output.write_text(json.dumps(report, indent=2) + "\n")
header: list[str] = []
for row in results:
    if list(row) != header:
        header = list(row)
        print(f"\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    print(f"| {' | '.join(f'{value:.4g}' if isinstance(value, float) else str(value) for value in row.values())} |")
