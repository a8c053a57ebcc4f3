"""DDIM's steps: Table 1 of Song et al. (2021) on the digits, the FID over the number of steps S and the noise eta.

Like theirs, the model is trained with linear betas to predict the noise, the grid is quadratic, and the predicted x_0
is not clipped. FID is of 1,000 images against the 1,297 training images, ± its bootstrap error; the columns have the
same noise at the start, so their differences are surer than that.

    accelerate launch train_accelerate.py --diffusion.beta_schedule linear --diffusion.prediction_type epsilon \\
        --training.loss_weighting none --training.betas '[0.9,0.999]' --output_dir runs/digits-linear
"""

import argparse
import time
from typing import Any

import torch

from benchmarks.record import Record, table
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline
from ddpm_hf.config import DataConfig
from ddpm_hf.data import load_cached_images
from ddpm_hf.manifest import weights_hash
from ddpm_hf.metrics import DigitsFeatures
from ddpm_hf.metrics.fid import mean_and_covariance
from ddpm_hf.metrics.scores import fid
from ddpm_hf.sampling import sample_images

STEPS = (5, 10, 20, 50, 100, 1000)
ETAS = (0.0, 1.0)
BATCH_SIZE = 250


def row(pipe: Any, spacing: str, steps: int, num_images: int, reference: tuple[torch.Tensor, torch.Tensor]) -> Any:
    """The figures of one number of steps."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    figures: dict[str, Any] = {"grid": spacing, "S": steps, "distinct steps": len(scheduler.timesteps)}
    network = DigitsFeatures.load()
    for eta in ETAS:
        start = time.perf_counter()
        images = sample_images(pipe.unet, scheduler, num_images, batch_size=BATCH_SIZE, eta=eta)
        figures["seconds per image"] = (time.perf_counter() - start) / num_images
        score = fid(network(images), *reference, bootstrap=50)["fid"]
        figures |= {f"FID, eta {eta:g}": score.value, f"error, eta {eta:g}": score.error}
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it draws."""
    parser.add_argument("--model", default="runs/digits-linear", help="a pipeline of digits")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--spacing", nargs="+", default=["quadratic"])
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row for each grid and number of steps."""
    pipe = DDPMCustomPipeline.from_pretrained(arguments.model)
    model = {key: pipe.scheduler.config[key] for key in ("beta_schedule", "prediction_type")}
    real = DigitsFeatures.load()(load_cached_images(DataConfig()).images)
    reference = mean_and_covariance(real)
    for spacing in arguments.spacing:
        for steps in arguments.steps:
            found = row(pipe, spacing, steps, arguments.num_images, reference)
            record.add({"weights_sha256": weights_hash(pipe.unet), **model, **found})


def report(rows: list[dict[str, Any]]) -> str:
    """One table."""
    lines = [
        [
            *(row[key] for key in ("grid", "S", "distinct steps")),
            *(f"{row[f'FID, eta {eta:g}']:.2f} ± {row[f'error, eta {eta:g}']:.2f}" for eta in ETAS),
            row["seconds per image"],
        ]
        for row in rows
    ]
    heads = ["grid", "S", "distinct steps", *(f"FID, eta = {eta:g}" for eta in ETAS), "seconds per image"]
    return table(heads, lines)
