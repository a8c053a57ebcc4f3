"""Images per second of this package's pipeline against diffusers' DDIMPipeline and DDPMPipeline, with the same weights,
scheduler and number of steps.

The time is that of a call for one batch, numpy images included. The ratio is of times, so below 1 is faster than
diffusers.
"""

import argparse
from functools import partial
from typing import Any

import diffusers
import torch

from benchmarks.measure import INTERLEAVED, interleave, interleaved_cells
from benchmarks.record import Bar, Record, table
from benchmarks.unet import CIFAR10, DIGITS
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel

CASES = [("CIFAR-10", CIFAR10, 16, 4), ("digits", DIGITS, 256, 20)]
"""Name, settings, batch size and steps."""
SCHEDULERS = {
    "DDIM": (DDIMScheduler, diffusers.DDIMScheduler, diffusers.DDIMPipeline),
    "DDPM": (DDPMScheduler, diffusers.DDPMScheduler, diffusers.DDPMPipeline),
}


def run(arguments: argparse.Namespace, record: Record) -> None:
    """One row for each network and scheduler."""
    for name, config, batch_size, steps in CASES:
        ours = UNet2DModel(**config).eval()
        theirs = diffusers.UNet2DModel(**config).eval()
        theirs.load_state_dict(ours.state_dict())
        for kind, (our_scheduler, their_scheduler, their_pipeline) in SCHEDULERS.items():
            pipelines = DDPMCustomPipeline(ours, our_scheduler()), their_pipeline(theirs, their_scheduler())
            for pipeline in pipelines:
                pipeline.set_progress_bar_config(disable=True)
            one, two = (partial(draw, pipeline, batch_size, steps) for pipeline in pipelines)
            times = interleave(one, two, arguments.rounds)
            record.add({"network": name, "batch": batch_size, "scheduler": kind, "steps": steps, **times})


def report(rows: list[dict[str, Any]]) -> str:
    """A table of times."""
    keys = ("network", "batch", "scheduler", "steps")
    return table([*keys, *INTERLEAVED], [[*(row[key] for key in keys), *interleaved_cells(row)] for row in rows])


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Images per second with DDIM."""
    limits = {"CIFAR-10": 1.05, "digits": 1.3}
    return [
        Bar(
            f"{row['network']}, DDIM, batch {row['batch']}: images per second over diffusers'",
            1 / row["ratio"],
            at_least=limits[row["network"]],
        )
        for row in rows
        if row["scheduler"] == "DDIM"
    ]


def draw(pipeline: Any, batch_size: int, steps: int) -> None:
    """A batch of images as numpy arrays, from the noise of one generator."""
    pipeline(
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=steps,
        output_type="np",
    )
