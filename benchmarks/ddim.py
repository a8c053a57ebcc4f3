"""DDIM's Table 1 on the digits: the FID over the number of steps S and the noise eta, and the seconds an image takes.

accelerate launch train_accelerate.py --diffusion.beta_schedule linear --diffusion.prediction_type epsilon \\
    --output_dir runs/digits-linear
python -m benchmarks.ddim --model runs/digits-linear

Song et al. (2021) show on CIFAR-10 that few steps want eta = 0, and many steps forgive any eta. Like theirs, these
samplers do not clip the predicted x_0.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ddim", description="FID over steps and eta.")
    parser.add_argument("--model", default="runs/digits", help="a pipeline of digits, such as the main job leaves")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--spacing", nargs="+", default=["quadratic"])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ddim.json")
    arguments = parser.parse_args()

    environment = machine(arguments.threads)
    pipe = DDPMCustomPipeline.from_pretrained(arguments.model)
    real = DigitsFeatures.load()(load_cached_images(DataConfig()).images)
    reference = mean_and_covariance(real)
    results = []
    for spacing in arguments.spacing:
        for steps in arguments.steps:
            results.append(row(pipe, spacing, steps, arguments.num_images, reference))
            if len(results) == 1:
                print(f"| {' | '.join(results[0])} |\n|{' --- |' * len(results[0])}")
            cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in results[-1].values())
            print(f"| {' | '.join(cells)} |", flush=True)
    arguments.output.write_text(
        json.dumps(
            {
                "benchmark": "ddim",
                "num_images": arguments.num_images,
                "weights_sha256": weights_hash(pipe.unet),
                **{key: pipe.scheduler.config[key] for key in ("beta_schedule", "prediction_type")},
                "machine": environment,
                "results": results,
            },
            indent=2,
        )
        + "\n"
    )
