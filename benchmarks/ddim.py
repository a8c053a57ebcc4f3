"""DDIM's Table 1 on the digits: the FID over the number of steps S and the noise eta, and the seconds an image takes.

    accelerate launch train_accelerate.py --config benchmarks/digits_adam.yaml --diffusion.beta_schedule linear \\
        --diffusion.prediction_type epsilon --training.loss_weighting none --training.betas '[0.9,0.999]' \\
        --output_dir runs/digits-linear

[Song et al. (2021)](https://arxiv.org/abs/2010.02502) show on CIFAR-10 that few steps want eta = 0, and many steps
forgive any eta. Like theirs, these samplers do not clip the predicted x_0. FID is against the training images, ± its
bootstrap error; both columns start from the same noise, so their differences are surer than that.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Record, table
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.manifest import weights_hash
from ddpm_hf.metrics import DigitsFeatures, FrechetDistance
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images

ETAS = (0.0, 1.0)
BATCH_SIZE = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the grids."""
    parser.add_argument("--model", type=Path, default=Path("runs/digits"), help="a pipeline of digits")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--spacing", nargs="+", default=["quadratic"])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100, 1000])
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each grid."""
    pipe = DDPMCustomPipeline.from_pretrained(arguments.model)
    model = {
        "weights_sha256": weights_hash(pipe.unet),
        **{key: pipe.scheduler.config[key] for key in ("beta_schedule", "prediction_type")},
    }
    fid = FrechetDistance(DigitsFeatures.load(), reset_real_features=False)
    fid.update(load_cached_images(DataConfig()).images, real=True)
    for spacing in arguments.spacing:
        for steps in arguments.steps:
            record.add({**model, **figures_of(pipe, spacing, steps, arguments.num_images, fid)})


def figures_of(pipe: Any, spacing: str, steps: int, num_images: int, fid: FrechetDistance) -> dict[str, Any]:
    """The figures of one number of steps; the metric has seen the real images."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    figures: dict[str, Any] = {"grid": spacing, "S": steps, "distinct steps": len(scheduler.timesteps)}
    for eta in ETAS:
        start = time.perf_counter()
        images = sample_images(pipe.unet, scheduler, range(num_images), SamplingOptions(eta, batch_size=BATCH_SIZE))
        figures["seconds per image"] = (time.perf_counter() - start) / num_images
        fid.reset()
        fid.update(images, real=False)
        figures[f"FID, eta {eta:g}"] = fid.compute()["fid"].item()
        figures[f"error, eta {eta:g}"] = fid.errors(images, draws=50)["fid"].item()
    return figures


def report(rows: list[dict[str, Any]]) -> str:
    """A table like theirs."""
    fids = [[f"{row[f'FID, eta {eta:g}']:.2f} ± {row[f'error, eta {eta:g}']:.2f}" for eta in ETAS] for row in rows]
    keys = ("grid", "S", "distinct steps")
    cells = [[*(row[key] for key in keys), *scores, row["seconds per image"]] for row, scores in zip(rows, fids)]
    return table([*keys, *(f"FID, eta {eta:g}" for eta in ETAS), "seconds per image"], cells)
