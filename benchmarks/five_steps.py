"""FID in four to ten evaluations of the network, against DDIM in 50 even steps: digits, Fashion-MNIST and CIFAR-10.

Every sampler starts from the same 2,000 noises. FID is against all training images: of digits in the features of the
embedded network, of the others, at 16x16, in those of a classifier that is trained first. The models are pipelines in
one folder; those measured were left by

    train_accelerate.py --config benchmarks/digits_adam.yaml --output_dir MODELS/digits
    train_accelerate.py --config fashion_mnist --data.resolution 16 --model.sample_size 16 --training.steps 700
    train_accelerate.py --config fashion_mnist --data.name uoft-cs/cifar10 --data.resolution 16 --model.sample_size 16
        --data.random_flip true --model.in_channels 3 --model.out_channels 3 --training.steps 2500
        --diffusion.beta_schedule linear --diffusion.prediction_type epsilon (its checkpoint of step 1,500)

so the first two have the cosine schedule and predict v, and the third has the linear one and predicts the noise.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.few_steps import steps_of
from benchmarks.record import Bar, Record, table
from benchmarks.small_features import trained_features
from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.manifest import weights_hash
from ddpm_hf.metrics import DigitsFeatures, FrechetDistance
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.sampling.samplers import make_scheduler

NUM_IMAGES, BATCH_SIZE = 2000, 500
PROBLEMS = ("digits", "fashion_mnist", "cifar10")
BUDGETS = (5, 4, 6, 8, 10)
"""In the order in which they are measured."""
REFERENCE = ("ddim", "leading", 50)
"""What is to be reached: even steps, diffusers' default grid."""
THEIRS, OURS = ("leading", "trailing"), ("leading", "trailing", "angle")


@dataclass(frozen=True)
class Candidate:
    """A sampler of `SAMPLERS` with options of its own.

    Args:
        sampler: its name there.
        grids: where it is measured.
        config: over the scheduler's config.
        eta: the noise.
    """

    sampler: str
    grids: tuple[str, ...] = THEIRS
    config: dict[str, Any] = field(default_factory=dict)
    eta: float = 0.0


CANDIDATES = {
    "adams": Candidate("adams", OURS),
    "unipc": Candidate("unipc"),
    "sa_solver": Candidate("sa_solver"),
    "dpmsolver++": Candidate("dpmsolver++"),
    "deis": Candidate("deis"),
    "ddim": Candidate("ddim", OURS),
    "adams, eta 1": Candidate("adams", ("trailing", "angle"), eta=1.0),
    "dpmsolver++, order 3": Candidate("dpmsolver++", config={"solver_order": 3}),
    "unipc, order 3": Candidate("unipc", config={"solver_order": 3}),
    "heun": Candidate("heun"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where models and images lie."""
    parser.add_argument("--models", type=Path, required=True, help="folder of the pipelines, and of the features")
    parser.add_argument("--fashion_mnist", type=Path, help="its folder of parquet files; without it, left out")
    parser.add_argument("--cifar10", type=Path, help="its folder of parquet files; without it, left out")
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """All rows that are missing, for the problems whose model and images are there."""
    record.resume()
    problems = [
        Measurements(name, arguments.models, vars(arguments).get(name), record)
        for name in PROBLEMS
        if (arguments.models / name).is_dir() and (name == "digits" or vars(arguments)[name] is not None)
    ]
    for budget in BUDGETS:
        for problem in problems:
            problem.measure(*REFERENCE)
            for name, candidate in CANDIDATES.items():
                for grid in candidate.grids:
                    problem.measure(name, grid, budget)


class Measurements:
    """One problem's model and the distance to its training images.

    Args:
        name: one of `PROBLEMS`.
        models: the folder of the models.
        data: the folder of its images; None for the digits.
        record: where the rows go.
    """

    def __init__(self, name: str, models: Path, data: Path | None, record: Record) -> None:
        self.name, self.record = name, record
        self.pipe = DDPMCustomPipeline.from_pretrained(models / name)
        self.model = weights_hash(self.pipe.unet)
        real = load_cached_images(DataConfig() if data is None else DataConfig(str(data.resolve()), resolution=16))
        extractor: Any = DigitsFeatures.load()
        if data is not None:
            path = models / f"{name}_features.pt"
            extractor = load_extractor(str(path if path.exists() else trained_features(real, path)))
        self.fid = FrechetDistance(extractor, reset_real_features=False)
        for batch in torch.split(real.images, BATCH_SIZE):
            self.fid.update(batch, real=True)

    def measure(self, name: str, grid: str, evaluations: int) -> None:
        """Add a row, unless it is there or no step fits."""
        candidate = CANDIDATES[name]
        key = {"problem": self.name, "model": self.model, "sampler": name, "grid": grid, "evaluations": evaluations}
        if self.record.find(**key) is not None:
            return
        scheduler = make_scheduler({**self.pipe.scheduler.config, **candidate.config}, candidate.sampler, grid)
        steps = steps_of(candidate.sampler, scheduler, evaluations)
        if steps is None:
            return
        scheduler.set_timesteps(steps)
        options = SamplingOptions(candidate.eta, batch_size=BATCH_SIZE)
        self.fid.reset()
        self.fid.update(sample_images(self.pipe.unet, scheduler, range(NUM_IMAGES), options), real=False)
        self.record.add({**key, "fid": self.fid.compute()["fid"].item()})


def _tables(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[tuple[str, str], dict[int, float]]]]:
    """For each problem, (sampler, grid) -> evaluations -> FID."""
    for problem in PROBLEMS:
        fids: dict[tuple[str, str], dict[int, float]] = {}
        for row in rows:
            if row["problem"] == problem:
                fids.setdefault((row["sampler"], row["grid"]), {})[row["evaluations"]] = row["fid"]
        if fids:
            yield problem, fids


def report(rows: list[dict[str, Any]]) -> str:
    """A table for each problem, and which sampler reaches DDIM's FID in how many evaluations."""
    parts = []
    for problem, fids in _tables(rows):
        budgets = sorted({budget for of in fids.values() for budget in of})
        best = {budget: min(of[budget] for of in fids.values() if budget in of) for budget in budgets}
        lines = [
            [sampler, grid, *(_marked(of.get(budget), best[budget]) for budget in budgets)]
            for (sampler, grid), of in fids.items()
        ]
        parts += [f"{problem}: {_in_words(fids)}", table(["sampler", "grid", *map(str, budgets)], lines)]
    return "\n\n".join(parts)


def _marked(fid: float | None, best: float) -> str | float | None:
    return f"**{fid:#.3g}**" if fid is not None and fid == best else fid


def _in_words(fids: dict[tuple[str, str], dict[int, float]]) -> str:
    target = fids[REFERENCE[:2]][REFERENCE[2]]
    said = f"DDIM in {REFERENCE[2]} even steps has FID {target:#.3g}"
    for whose, is_ours in (("ours", True), ("diffusers'", False)):
        fewest, name, fid = _fewest(fids, target, is_ours)
        if fewest is None:
            said += f"; none of {whose} reaches it"
        else:
            said += f"; of {whose}, {name} reaches it in {fewest} ({fid:#.3g})"
    return said + "."


def _fewest(
    fids: dict[tuple[str, str], dict[int, float]], target: float, is_ours: bool
) -> tuple[int | None, str, float]:
    """The fewest evaluations that reach a FID, with the best sampler that does; DDIM's own steps do not count."""
    reached = [
        (budget, fid, ", ".join(key))
        for key, of in fids.items()
        for budget, fid in of.items()
        if fid <= target and key[0] != "ddim" and key[0].startswith("adams") == is_ours
    ]
    if not reached:
        return None, "", target
    budget, fid, name = min(reached)
    return budget, name, fid


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """The fewest evaluations that reach the FID of 50 steps of DDIM, ours and diffusers' together."""
    found = []
    for problem, fids in _tables(rows):
        target = fids[REFERENCE[:2]][REFERENCE[2]]
        counts = [fewest for ours in (True, False) if (fewest := _fewest(fids, target, ours)[0]) is not None]
        what = f"{problem}: evaluations to the FID of DDIM in 50 even steps ({target:#.3g})"
        found.append(Bar(what, min(counts, default=50), at_most=5))
    return found
