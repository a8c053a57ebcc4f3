"""What the objectives are worth on the digits: the main job's network with uniform weights and Adam's usual betas,
shortened, with one thing changed at a time.

Mean ± standard deviation over the seeds. Every run is a training run of its own, and what is in the file of results
already is not run again. Bits/dim are those of held-out digits (the estimate with 20 timesteps an image; all runs
have the same noise and timesteps, so their differences are known better than the values). The spread is the standard
deviation of a step's loss from step to step, over its mean, in the second half of the run. FID is of 500 images in 25
steps. These runs are short: they say what a setting does early, not where it ends.
"""

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from benchmarks.record import Record, over_seeds, table
from ddpm_hf import DDPMCustomPipeline, DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.metrics.bits_per_dim import Likelihood, bits_per_dim
from ddpm_hf.training.log import read_log
from ddpm_hf.training.run import Run
from ddpm_hf.training.setup import build
from train_accelerate import train

RECIPE = Path(__file__).with_name("digits_adam.yaml")
PLAIN = ["--training.loss_weighting", "none", "--training.betas", "[0.9,0.999]"]
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Length and number of runs."""
    parser.add_argument("--steps", type=int, default=300, help="of each run; a multiple of 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each variant and seed."""
    record.resume()
    accelerator = Accelerator(cpu=True)
    for seed in arguments.seeds:
        for variant in VARIANTS:
            key = {"variant": variant, "seed": seed, "steps": arguments.steps}
            if record.find(**key) is None:
                record.add({**key, **measure(variant, seed, arguments.steps, accelerator)})


def measure(variant: str, seed: int, steps: int, accelerator: Accelerator) -> dict[str, Any]:
    """Train one run, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *("--seed", str(seed), "--output_dir", folder, "--training.steps", str(steps), "--training.log_every", "1"),
            *("--training.sample_every", "null", "--training.checkpoint_every", "null", "--threads", "1", "--quiet"),
            *("--evaluation.every", str(steps // ROUNDS), "--evaluation.num_inference_steps", "25"),
        ]
        run = Run(build(parse_config([*settings, *PLAIN, *VARIANTS[variant]], RECIPE), accelerator))
        train(run)
        run.finish(*run.score())
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
    """Bits per dimension of the held-out digits."""
    images = load_cached_images(DataConfig(split="test")).images
    return bits_per_dim(pipe, images, Likelihood("estimate", timesteps_per_image=20)).mean


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each length of the runs."""
    return "\n\n".join(
        _table([row for row in rows if row["steps"] == steps]) for steps in sorted({row["steps"] for row in rows})
    )


def _table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for variant in VARIANTS:
        runs = [row for row in rows if row["variant"] == variant]
        for kind in runs[0]["bits_per_dim"] if runs else ():
            bits = over_seeds([row["bits_per_dim"][kind] for row in runs], 3)
            spread = over_seeds([row["loss_spread"] for row in runs], 3)
            fids = [over_seeds([row["fid"][step] for row in runs], 2) for step in runs[0]["fid"]]
            cells.append([variant, kind, bits, spread, *fids])
    steps = [f"FID at {step}" for step in rows[0]["fid"]]
    return table(["objective", "variance", "bits/dim", "spread of the loss", *steps], cells)
