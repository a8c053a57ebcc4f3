"""What the objectives are worth on the digits: the main job's recipe, shortened, with one thing changed at a time.

    python -m benchmarks.objectives --steps 300 --seeds 0 1 2

Every run is a training run of its own, and what is in the file of results already is not run again. Printed are the
bits/dim of held-out digits (the stochastic estimate; all runs have the same noise and timesteps, so their differences
are known better than the values), the spread of the loss from step to step, and the FID over the steps.
"""

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from benchmarks.measure import machine
from ddpm_hf import DDPMCustomPipeline, DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.config import DataConfig
from ddpm_hf.data import load_cached_images
from ddpm_hf.likelihood import bits_per_dim
from ddpm_hf.metrics_log import read_log
from ddpm_hf.run import Run
from train_accelerate import train

RECIPE = Path(__file__).parent.parent / "configs" / "train" / "digits.yaml"
RESULTS = Path(__file__).parent / "results" / "objectives.json"
HYBRID = ["--training.loss", "hybrid", "--diffusion.variance_type", "learned_range", "--model.out_channels", "2"]
VARIANTS: dict[str, list[str]] = {
    "simple": [],
    "kl": ["--training.loss", "kl"],
    "hybrid, learned_range": HYBRID,
    "min_snr": ["--training.loss_weighting", "min_snr"],
    "stratified": ["--training.timestep_sampling", "stratified"],
}
ROUNDS = 3
"""Scores during a run, the last at its end."""


def measure(variant: str, seed: int, steps: int, accelerator: Accelerator) -> dict[str, Any]:
    """Train one run, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *("--seed", str(seed), "--output_dir", folder, "--training.steps", str(steps), "--training.log_every", "1"),
            *("--training.sample_every", "null", "--training.checkpoint_every", "null", "--threads", "1", "--quiet"),
            *("--evaluation.every", str(steps // ROUNDS), "--evaluation.num_inference_steps", "25"),
        ]
        run = Run(parse_config([*settings, *VARIANTS[variant]], RECIPE), accelerator)
        run.start()
        train(run)
        run.finish(*run.evaluate())
        lines = read_log(Path(folder) / "metrics.jsonl")
        pipe = DDPMCustomPipeline.from_pretrained(folder)
    losses = [line["loss"] for line in lines if "loss" in line][-steps // 2 :]
    changes = [after - before for before, after in pairwise(losses)]
    bits = {pipe.scheduler.config.variance_type: bits_of(pipe)}
    if "fixed_small" in bits:
        pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, variance_type="fixed_large")
        bits["fixed_large"] = bits_of(pipe)
    return {
        "bits_per_dim": bits,
        # Half the mean square of neighbours' differences is the variance without the trend.
        "loss_spread": (statistics.fmean(change**2 for change in changes) / 2) ** 0.5 / statistics.fmean(losses),
        "fid": {line["step"]: line["fid"] for line in lines if "fid" in line},
    }


def bits_of(pipe: Any) -> float:
    """Of the held-out digits."""
    images = load_cached_images(DataConfig(split="test")).images
    return bits_per_dim(pipe, images, method="estimate", timesteps_per_image=20).mean


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, mean ± standard deviation over the seeds."""
    lines = []
    for variant in VARIANTS:
        rows = [row for row in results if row["variant"] == variant]
        if not rows:
            continue
        for kind in rows[0]["bits_per_dim"]:
            fids = [" ".join(_spread([row["fid"][step] for row in rows], 2)) for step in rows[0]["fid"]]
            cells = [
                variant,
                kind,
                " ".join(_spread([row["bits_per_dim"][kind] for row in rows], 3)),
                " ".join(_spread([row["loss_spread"] for row in rows], 3)),
                *fids,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    steps = [f"FID at {step}" for step in results[0]["fid"]]
    heads = ["objective", "variance", "bits/dim", "spread of the loss", *steps]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *lines])


def _spread(values: list[float], digits: int) -> list[str]:
    more = [f"± {statistics.stdev(values):.{digits}f}"] if len(values) > 1 else []
    return [f"{statistics.fmean(values):.{digits}f}", *more]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of each run; a multiple of 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    environment = machine(threads=1)
    content = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"results": []}
    results = [row for row in content["results"] if row["steps"] == arguments.steps]
    accelerator = Accelerator(cpu=True)
    for seed in arguments.seeds:
        for variant in VARIANTS:
            if any((row["variant"], row["seed"]) == (variant, seed) for row in results):
                continue
            figures = measure(variant, seed, arguments.steps, accelerator)
            results.append({"variant": variant, "seed": seed, "steps": arguments.steps, **figures})
            arguments.output.write_text(json.dumps({"machine": environment, "results": results}, indent=2) + "\n")
    # As the file has them: JSON's keys are strings.
    print(table(json.loads(arguments.output.read_text())["results"]))


if __name__ == "__main__":
    main()
