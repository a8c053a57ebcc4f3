"""FID over the number of network evaluations, for every sampler of `ddpm-hf-sample` on every grid that it has.

Every sampler starts from the same noise. FID is of 1,000 images of the main job's model against its 1,297 training
images; "best of" says which sampler to take for a budget. A sampler with several evaluations a step takes as many
steps as fit; where none do, there is no figure.
"""

import argparse
from typing import Any

import torch

from benchmarks.record import Bar, Record, table
from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.manifest import weights_hash
from ddpm_hf.metrics import DigitsFeatures, FrechetDistance
from ddpm_hf.sampling.samplers import SAMPLERS, make_scheduler

NUM_IMAGES = 1000
BUDGETS = (5, 10, 20, 50)
EVEN = ("ddim", "leading")
"""What the issue compares with: DDIM with even steps, diffusers' default grid."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument("--model", default="runs/digits", help="a pipeline of digits, such as the main job leaves")
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row for each sampler, grid and budget."""
    record.resume()
    pipe = DDPMCustomPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    model, own = weights_hash(pipe.unet), pipe.scheduler.config
    fid = FrechetDistance(DigitsFeatures.load(), reset_real_features=False)
    fid.update(load_cached_images(DataConfig()).images, real=True)
    for name, sampler in SAMPLERS.items():
        for spacing in sampler.timestep_spacings:
            scheduler = make_scheduler(own, name, spacing)
            pipe.register_modules(scheduler=scheduler)
            for budget in BUDGETS:
                key = {"model": model, "sampler": name, "grid": spacing, "evaluations": budget}
                steps = steps_of(name, scheduler, budget)
                if steps is None or record.find(**key) is not None:
                    continue
                images: torch.Tensor = pipe(
                    seeds=range(NUM_IMAGES), num_inference_steps=steps, output_type="uint8"
                ).images
                fid.reset()
                fid.update(images, real=False)
                record.add({**key, "fid": fid.compute()["fid"].item()})


def steps_of(name: str, scheduler: Any, evaluations: int) -> int | None:
    """The most steps that take at most so many evaluations."""
    for steps in range(evaluations, SAMPLERS[name].fewest_steps - 1, -1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= evaluations:
            return steps
    return None


def report(rows: list[dict[str, Any]]) -> str:
    """A row for each sampler and grid, and the best of each budget."""
    fids = _table(rows)
    lines = [[sampler, grid, *(of.get(budget) for budget in BUDGETS)] for (sampler, grid), of in fids.items()]
    best = [", ".join(min((of[budget], key) for key, of in fids.items() if budget in of)[1]) for budget in BUDGETS]
    return table(["sampler", "grid", *map(str, BUDGETS)], [*lines, ["best of", "", *best]])


def _table(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """(sampler, grid) -> evaluations -> FID, of the model that was measured last."""
    fids: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row["model"] != rows[-1]["model"]:
            continue
        fids.setdefault((row["sampler"], row["grid"]), {})[row["evaluations"]] = row["fid"]
    return fids


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Evaluations of DDIM with even steps over the fewest with which any sampler reaches its FID."""
    fids, found = _table(rows), []
    for budget in BUDGETS[2:]:
        target = fids[EVEN][budget]
        fewest = min(n for of in fids.values() for n, fid in of.items() if fid <= target)
        what = f"digits: to the FID of DDIM in {budget} even steps ({target:.2f}), its evaluations over the fewest"
        found.append(Bar(what, budget / fewest, at_least=2))
    return found
