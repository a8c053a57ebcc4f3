"""FID over images seen and over seconds, for our recipe and for a loop of diffusers' parts as in its example
(`plain_loop.py`), with the same network, batch size and sampler.

Both learning rates are tuned over the same grid, on seed 0; "published" is the plain loop with the example's own
learning rate and warm-up. FID is of 1,000 images with eta = 1 against all training images: digits in 50 steps and in
the features of the embedded network, Fashion-MNIST at 16x16 in 25 steps and in those of a classifier that is trained
first. Seconds are the steps times what a step takes, measured in turn on one thread.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator

from benchmarks.fashion_features import trained_features
from benchmarks.measure import in_new_process, in_turn, ratio_of
from benchmarks.plain_loop import LEARNING_RATE, WARMUP_STEPS, PlainLoop
from benchmarks.record import Bar, Record, over_seeds, table
from ddpm_hf import DDIMScheduler, DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.images import from_uint8
from ddpm_hf.launch import start_processes
from ddpm_hf.models.unet_2d_config import OURS_ONLY
from ddpm_hf.training.evaluation import SampleEvaluation
from ddpm_hf.training.log import read_log
from ddpm_hf.training.run import Run
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import build
from train_accelerate import train

RECIPES = Path(__file__).parent.parent / "configs" / "train"
SCORING = [
    *("--evaluation.metrics", "[fid]", "--evaluation.held_out_split", "null", "--evaluation.num_images", "1000"),
    *("--evaluation.num_inference_steps", "50", "--evaluation.eta", "1"),
    *("--training.sample_every", "null", "--training.checkpoint_every", "null", "--threads", "1", "--quiet"),
]
LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)
PACE_ROUNDS, PACE_STEPS = 5, 40
PLAIN_DIFFUSION = ["--diffusion.beta_schedule", "linear", "--diffusion.prediction_type", "epsilon"]


@dataclass(frozen=True)
class Problem:
    """What is learned, and for how many steps.

    Args:
        recipe: of configs/train.
        settings: over the recipe's.
        plain_steps: of the plain loop.
        our_steps: of our recipe, the first for tuning; its learning rate falls to zero within each.
        changes: settings of our recipe to try one at a time, by name.
    """

    recipe: str
    settings: tuple[str, ...]
    plain_steps: int
    our_steps: tuple[int, ...]
    changes: dict[str, tuple[str, ...]]


CHANGES: dict[str, tuple[str, ...]] = {
    "uniform weights": ("--training.loss_weighting", "none"),
    "betas 0.9, 0.999": ("--training.betas", "[0.9,0.999]"),
    "stratified": ("--training.timestep_sampling", "stratified"),
}
SMALL_FASHION = (
    *("--data.resolution", "16", "--model.sample_size", "16"),
    *("--evaluation.num_inference_steps", "25"),
)
PROBLEMS = {
    "digits": Problem("digits.yaml", (), 2400, (1200, 600, 1400, 1600), CHANGES),
    "fashion_mnist": Problem("fashion_mnist.yaml", SMALL_FASHION, 1000, (500, 250), {}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images that are not embedded lie."""
    parser.add_argument("--fashion_mnist", type=Path, help="its folder of parquet files; without it, digits only")
    parser.set_defaults(rounds=None)


class Measurements:
    """Runs of one problem, each recorded once.

    Args:
        problem: its name.
        data: where its images are; None for the recipe's.
        record: where the rows go.
    """

    def __init__(self, problem: str, data: Path | None, record: Record) -> None:
        self.name, self.problem, self.record = problem, PROBLEMS[problem], record
        self.accelerator = Accelerator(cpu=True)
        self.settings = [*SCORING, *self.problem.settings, *(["--data.name", str(data)] if data else [])]
        self.extractor = ["--evaluation.extractor", "digits"]

    def run(self) -> None:
        """All rows that are missing."""
        with tempfile.TemporaryDirectory() as folder:
            if self.name == "fashion_mnist":
                images = load_cached_images(self._config([], Path(folder)).data)
                self.extractor = ["--evaluation.extractor", str(trained_features(images, Path(folder) / "features.pt"))]
            ours, *shorter = self.problem.our_steps
            self._pace()
            our_rate = self._tuned("ours", ours)
            plain_rate = self._tuned("plain", self.problem.plain_steps)
            for seed in SEEDS:
                for steps in (ours, *shorter):
                    self._measure("ours", our_rate, seed, steps)
                self._measure("plain", plain_rate, seed, self.problem.plain_steps)
                self._measure("published", LEARNING_RATE, seed, self.problem.plain_steps)
                for change in self.problem.changes:
                    self._measure(change, our_rate, seed, ours)

    def _pace(self) -> None:
        """Milliseconds of a step of either loop, in turn, each in a process of its own."""
        key = {"problem": self.name, "method": "pace"}
        if self.record.find(**key) is not None:
            return
        settings = [*self.settings, *self.extractor, "--training.steps", str(PACE_STEPS)]
        recipe = RECIPES / self.problem.recipe
        ways = {pace.__name__: partial(in_new_process, pace, settings, recipe) for pace in (our_pace, plain_pace)}
        ours, plain = in_turn(ways, PACE_ROUNDS, is_warm=True).values()
        medians = {"ours_ms": statistics.median(ours), "plain_ms": statistics.median(plain)}
        self.record.add({**key, **medians, **ratio_of(plain, ours)})

    def _tuned(self, method: str, steps: int) -> float:
        """The learning rate of the lowest FID on seed 0."""
        found = [(self._measure(method, rate, 0, steps)["fid"], rate) for rate in LEARNING_RATES]
        return min(found)[1]

    def _measure(self, method: str, learning_rate: float, seed: int, steps: int) -> dict[str, Any]:
        key = {
            "problem": self.name,
            "method": method,
            "learning_rate": learning_rate,
            "seed": seed,
            "steps": steps,
        }
        found = self.record.find(**key)
        if found is not None:
            return found
        with tempfile.TemporaryDirectory() as folder:
            settings = ["--seed", str(seed), "--training.steps", str(steps), *self.extractor]
            settings += ["--training.learning_rate", str(learning_rate), "--evaluation.every", str(steps // 2)]
            is_plain = method in ("plain", "published")
            settings += PLAIN_DIFFUSION if is_plain else self.problem.changes.get(method, ())
            config = self._config(settings, Path(folder))
            warmup = WARMUP_STEPS if method == "published" else config.training.warmup_steps
            result = self._plain(config, warmup) if is_plain else self._ours(config)
        self.record.add({**key, "batch_size": config.training.batch_size, **result})
        return result

    def _config(self, settings: list[str], folder: Path) -> Config:
        return parse_config([*self.settings, *settings, "--output_dir", str(folder)], RECIPES / self.problem.recipe)

    def _ours(self, config: Config) -> dict[str, Any]:
        run = Run(build(config, self.accelerator))
        train(run)
        results, _ = run.score()
        marks = {line["step"]: line["fid"] for line in read_log(config.output_dir / "metrics.jsonl") if "fid" in line}
        return {
            "fid": results.scores["fid"]["samples"],
            "marks": {str(step): fid for step, fid in marks.items()},
            "extractor_sha256": results.extractor_sha256,
        }

    def _plain(self, config: Config, warmup_steps: int) -> dict[str, Any]:
        data = load_cached_images(config.data)
        sampler = DDIMScheduler.from_config(
            DDPMScheduler(**config.diffusion).config, timestep_spacing=config.timestep_spacing
        )
        sampler.set_timesteps(config.evaluation.num_inference_steps)
        evaluation = SampleEvaluation(config, data, sampler, self.accelerator, show_progress=False)
        loop = plain_loop(config, data, warmup_steps)
        unet = loop.unet
        marks: dict[str, float] = {}
        for step in range(1, config.training.steps + 1):
            loop.step()
            if step % (config.evaluation.every or 1) == 0:
                loop.ema.store(unet.parameters())
                loop.ema.copy_to(unet.parameters())
                images = evaluation.draw(unet, config.evaluation.num_images)
                results = evaluation.score(images)
                marks[str(step)] = results.scores["fid"]["samples"]
                loop.ema.restore(unet.parameters())
        return {
            "fid": marks[str(config.training.steps)],
            "marks": marks,
            "extractor_sha256": results.extractor_sha256,
        }


def plain_loop(config: Config, data: ImageData, warmup_steps: int) -> PlainLoop:
    """The plain loop on the network, images, batch size and seed of a recipe."""
    training = config.training
    torch.manual_seed(config.seed)
    return PlainLoop(
        diffusers.UNet2DModel(**{key: value for key, value in config.model.items() if key not in OURS_ONLY}),
        from_uint8(data.images),
        training.steps,
        training.batch_size,
        training.learning_rate,
        warmup_steps,
    )


def our_pace(settings: list[str], recipe: Path) -> float:
    """Milliseconds of a step of the run that train_accelerate.py starts."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config([*settings, "--output_dir", folder], recipe)
        run = Run(build(config, start_processes(config.threads)))
        train(run)
    return 1000 * run.seconds["training"] / config.training.steps


def plain_pace(settings: list[str], recipe: Path) -> float:
    """Milliseconds of a step of the plain loop."""
    config = parse_config(settings, recipe)
    torch.set_num_threads(config.threads or 1)
    loop = plain_loop(config, load_cached_images(config.data), config.training.warmup_steps)
    for _ in range(config.training.steps):
        loop.step()
    return 1000 * loop.seconds / config.training.steps


def run(arguments: argparse.Namespace, record: Record) -> None:
    """All runs that are not in the file yet."""
    record.resume()
    Measurements("digits", None, record).run()
    if arguments.fashion_mnist is not None:
        Measurements("fashion_mnist", arguments.fashion_mnist.resolve(), record).run()


def report(rows: list[dict[str, Any]]) -> str:
    """For each problem: the three seeds with the tuned learning rates, then the tuning."""
    return "\n\n".join(_section(name, [row for row in rows if row["problem"] == name]) for name in PROBLEMS)


def _section(problem: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"{problem}: not measured."
    pace = _pace_of(rows)
    summary = []
    for (method, rate, steps), seeds in _groups(rows).items():
        half = [row["marks"][min(row["marks"], key=int)] for row in seeds]
        fids = [row["fid"] for row in seeds]
        images = steps * seeds[0]["batch_size"]
        each = ", ".join(f"{value:.2f}" for value in fids)
        seconds = f"{steps * pace.get(method, pace['ours']):.0f}"
        summary.append([method, f"{rate:g}", steps, images, seconds, over_seeds(half), over_seeds(fids), each])
    heads = ["loop", "learning rate", "steps", "images seen", "seconds", "FID half-way", "FID", "of each seed"]
    tuning = []
    for method, steps in (("ours", PROBLEMS[problem].our_steps[0]), ("plain", PROBLEMS[problem].plain_steps)):
        of_rate = {
            row["learning_rate"]: f"{row['fid']:.2f}"
            for row in rows
            if (row["method"], row.get("steps"), row.get("seed")) == (method, steps, 0)
        }
        tuning.append([method, steps, *(of_rate.get(rate) for rate in LEARNING_RATES)])
    return "\n\n".join(
        [
            f"{problem}: mean ± standard deviation over {len(SEEDS)} seeds, each line a run of its own length. A step "
            f"takes {1000 * pace['ours']:.0f} ms with our loop and {1000 * pace['plain']:.0f} ms with the plain one.",
            table(heads, summary),
            f"{problem}: FID on seed 0 over the learning rate.",
            table(["loop", "steps", *(f"{rate:g}" for rate in LEARNING_RATES)], tuning),
        ]
    )


def _pace_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Loop -> seconds of a step; what changes our recipe does not change them."""
    pace = next(row for row in rows if row["method"] == "pace")
    plain = pace["ours_ms"] * pace["ratio"]
    return {"ours": pace["ours_ms"] / 1000, "plain": plain / 1000, "published": plain / 1000}


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[str, float, int], list[dict[str, Any]]]:
    """(method, learning rate, steps) -> its seeds, where all have been run."""
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in sorted((row for row in rows if "seed" in row), key=lambda row: row["seed"]):
        groups.setdefault((row["method"], row["learning_rate"], row["steps"]), []).append(row)
    return {key: seeds for key, seeds in groups.items() if len(seeds) == len(SEEDS)}


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """How many times as long the plain loop takes to its best mean FID as our recipe to that or a lower one."""
    found = []
    for problem in PROBLEMS:
        of_problem = [row for row in rows if row["problem"] == problem]
        plain, ours = (_points(of_problem, method) for method in ("plain", "ours"))
        if not plain or not ours:
            continue
        target, images = min(plain)
        ratio = images / min((seen for fid, seen in ours if fid <= target), default=float("inf"))
        pace = _pace_of(of_problem)
        to = f"{problem}: to the plain loop's FID of {target:.2f}"
        found.append(Bar(f"{to}, its images over ours", ratio, at_least=2))
        found.append(Bar(f"{to}, its seconds over ours", ratio * pace["plain"] / pace["ours"], at_least=2))
    return found


def _points(rows: list[dict[str, Any]], method: str) -> list[tuple[float, int]]:
    """(mean FID, images seen) at each mark of each of the method's runs."""
    return [
        (statistics.fmean(row["marks"][mark] for row in seeds), int(mark) * seeds[0]["batch_size"])
        for (name, _, _), seeds in _groups(rows).items()
        if name == method
        for mark in seeds[0]["marks"]
    ]
