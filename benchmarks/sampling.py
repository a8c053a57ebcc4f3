"""Images per second of this package's pipeline against diffusers' own, with the same weights, scheduler and steps."""

from functools import partial
from typing import Any

import diffusers
import torch

from benchmarks.measure import interleave
from benchmarks.unet import CIFAR10, DIGITS
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel

CASES = [("CIFAR-10", CIFAR10, 16), ("digits", DIGITS, 256)]
STEPS = 4
SCHEDULERS = {
    "DDIM": (DDIMScheduler, diffusers.DDIMScheduler, diffusers.DDIMPipeline),
    "DDPM": (DDPMScheduler, diffusers.DDPMScheduler, diffusers.DDPMPipeline),
}


def run(rounds: int) -> list[dict[str, Any]]:
    """One row for each network and scheduler.

    Returns:
        Times of a call; its ratio is of times, so below 1 is faster than diffusers.
    """
    rows = []
    for name, config, batch_size in CASES:
        ours = UNet2DModel(**config).eval()
        theirs = diffusers.UNet2DModel(**config).eval()
        theirs.load_state_dict(ours.state_dict())
        for kind, (our_scheduler, their_scheduler, their_pipeline) in SCHEDULERS.items():
            pipelines = DDPMCustomPipeline(ours, our_scheduler()), their_pipeline(theirs, their_scheduler())
            for pipeline in pipelines:
                pipeline.set_progress_bar_config(disable=True)
            one, two = (partial(draw, pipeline, batch_size) for pipeline in pipelines)
            rows.append({"network": name, "batch": batch_size, "scheduler": kind, **interleave(one, two, rounds)})
    return rows


def draw(pipeline: Any, batch_size: int) -> None:
    """A batch of images as numpy arrays, from the noise of one generator."""
    pipeline(
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
        output_type="np",
    )
