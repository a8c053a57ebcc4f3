"""Images and seconds to one quality: our recipe, our recipe before Muon, and a loop of diffusers' parts as in its
example (`plain_loop.py`), with the same network, batch size and sampler.

The quality is FID of 10,000 images, drawn by UniPC in 10 steps, against all training images: of the digits in the
features of the embedded network, of Fashion-MNIST and CIFAR-10 at 16x16 in those of a small classifier that is trained
first. Every length is a run of its own, whose learning rate falls to zero within it. The plain loop is tuned on seed 0,
one setting after the other: learning rate, betas and prediction, and the learning rate again.

A ratio is the plain loop's images over those that our curve needs to the same mean FID; its interval holds 95% of the
ratios of seeds drawn anew. Seconds are steps times what a step takes, measured in turn on one thread.
"""

import argparse
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator

from benchmarks.measure import in_new_process, in_turn, ratio_of
from benchmarks.plain_loop import PlainLoop, PlainSettings
from benchmarks.record import Bar, Record, over_seeds, table
from benchmarks.small_features import trained_features
from benchmarks.time_to_quality import times_fewer
from ddpm_hf import DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.images import from_uint8
from ddpm_hf.launch import start_processes
from ddpm_hf.metrics.table import SAMPLES
from ddpm_hf.models.unet_2d_config import OURS_ONLY
from ddpm_hf.training.evaluation import SampleEvaluation
from ddpm_hf.training.run import Run
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import build, evaluation_sampler
from train_accelerate import train

RECIPES = Path(__file__).parent.parent / "configs" / "train"
SCORING = [
    *("--evaluation.metrics", "[fid]", "--evaluation.held_out_split", "null", "--evaluation.num_images", "10000"),
    *("--evaluation.sampler", "unipc", "--evaluation.num_inference_steps", "10", "--evaluation.eta", "0"),
    *("--evaluation.batch_size", "500", "--training.sample_every", "null", "--training.checkpoint_every", "null"),
    *("--threads", "1", "--quiet"),
]
SEEDS = (0, 1, 2, 3, 4)
PACE_ROUNDS, PACE_STEPS = 5, 40
START = PlainSettings(learning_rate=4e-3, warmup_steps=100)
"""Of the tuning: the example's own learning rate and warm-up are for runs that take hours."""
TUNING: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"learning_rate": 2e-3},),
    (
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    ),
    ({"learning_rate": 1e-3}, {"learning_rate": 4e-3}),
)
"""Changes to the best so far, one after the other."""
TUNED = tuple(asdict(START))
OUR_WAYS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "before": (
        *("--training.optimizer", "adam", "--training.learning_rate", "0.002"),
        *("--training.lr_schedule", "cosine", "--training.warmup_steps", "100"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """What is learned, and for how many steps.

    Args:
        recipe: of configs/train.
        settings: over the recipe's.
        plain_steps: of the plain loop.
        steps: way -> steps of its runs.
        tried: other settings of our recipe by name, each measured on seed 0 in as many steps as `before` takes.
    """

    recipe: str
    settings: tuple[str, ...]
    plain_steps: int
    steps: dict[str, tuple[int, ...]]
    tried: dict[str, tuple[str, ...]]


MUON = (
    *("--training.optimizer", "muon", "--training.learning_rate", "0.008"),
    *("--training.lr_schedule", "linear", "--training.warmup_steps", "30"),
)
"""The digits' recipe has them; these problems' does not."""
SMALL = ("--data.resolution", "16", "--model.sample_size", "16", *MUON)
COLOUR = (*SMALL, "--model.in_channels", "3", "--model.out_channels", "3")
SLOWER = ("--training.learning_rate", "0.004")
EARLIER = (*SLOWER, "--training.lr_schedule", "cosine", "--training.warmup_steps", "100")
TRIED = {
    "rate 0.004": SLOWER,
    "rate 0.008, cosine, warm-up 100": EARLIER[2:],
    "rate 0.004, cosine, warm-up 100": EARLIER,
    "rate 0.004, cosine, warm-up 30": (*SLOWER, "--training.lr_schedule", "cosine"),
    "rate 0.004, linear, warm-up 100": (*SLOWER, "--training.warmup_steps", "100"),
    "rate 0.004, cosine, warm-up 100, uniform weights": (*EARLIER, "--training.loss_weighting", "none"),
    "rate 0.004, cosine, warm-up 100, betas 0.95, 0.99": (*EARLIER, "--training.betas", "[0.95,0.99]"),
}
PROBLEMS = {
    "digits": Problem("digits.yaml", (), 1200, {"ours": (400, 600, 700), "before": (600,)}, TRIED),
    "fashion_mnist": Problem("fashion_mnist.yaml", SMALL, 750, {"ours": (250, 375), "before": (375,)}, {}),
    "cifar10": Problem("fashion_mnist.yaml", COLOUR, 750, {"ours": (250, 375), "before": (375,)}, {}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images that are not embedded lie."""
    parser.add_argument("--fashion_mnist", type=Path, help="its folder of parquet files; without it it is left out")
    parser.add_argument("--cifar10", type=Path, help="likewise")
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
            if self.name != "digits":
                images = load_cached_images(self._config([], Path(folder)).data)
                self.extractor = ["--evaluation.extractor", str(trained_features(images, Path(folder) / "features.pt"))]
            self._pace()
            plain = self._tuned()
            for seed in SEEDS:
                for way in OUR_WAYS:
                    for steps in self.problem.steps[way]:
                        self._ours(way, seed, steps)
                self._plain(plain, seed)
            for change in self.problem.tried:
                self._ours(change, 0, max(self.problem.steps["before"]))

    def _pace(self) -> None:
        """Milliseconds of a step of each loop, in turn, each in a process of its own."""
        if self.record.find(problem=self.name, way="pace") is not None:
            return
        settings = [*self.settings, *self.extractor, "--training.steps", str(PACE_STEPS)]
        recipe = RECIPES / self.problem.recipe
        ways = {way: partial(in_new_process, our_pace, [*settings, *ours], recipe) for way, ours in OUR_WAYS.items()}
        ms = in_turn(
            {**ways, "plain": partial(in_new_process, plain_pace, settings, recipe)}, PACE_ROUNDS, is_warm=True
        )
        for way in OUR_WAYS:
            row = {"problem": self.name, "way": "pace", "of": way, "ms": statistics.median(ms[way])}
            self.record.add({**row, **ratio_of(ms["plain"], ms[way])})

    def _tuned(self) -> PlainSettings:
        """The plain settings of the lowest FID on seed 0, one change after the other."""
        best, lowest = START, self._plain(START, 0)
        for changes in TUNING:
            found = [(self._plain(replace(best, **change), 0), change) for change in changes]
            fid, change = min(found, key=lambda pair: pair[0])
            if fid < lowest:
                best, lowest = replace(best, **change), fid
        return best

    def _ours(self, way: str, seed: int, steps: int) -> float:
        key = {"problem": self.name, "way": way, "seed": seed, "steps": steps}
        found = self.record.find(**key)
        if found is None:
            changes = {**OUR_WAYS, **self.problem.tried}[way]
            with tempfile.TemporaryDirectory() as folder:
                config = self._config([*self._of(seed, steps), *changes], Path(folder))
                run = Run(build(config, self.accelerator))
                train(run)
                results, _ = run.score()
            found = self._add(key, config, results.of(SAMPLES)["fid"])
        return float(found["fid"])

    def _plain(self, settings: PlainSettings, seed: int) -> float:
        steps = self.problem.plain_steps
        key = {"problem": self.name, "way": "plain", **asdict(settings), "seed": seed, "steps": steps}
        found = self.record.find(**key)
        if found is None:
            diffusion = ["--diffusion.beta_schedule", settings.beta_schedule]
            diffusion += ["--diffusion.prediction_type", settings.prediction_type]
            with tempfile.TemporaryDirectory() as folder:
                config = self._config([*self._of(seed, steps), *diffusion], Path(folder))
                fid = plain_fid(config, settings, self.accelerator)
            found = self._add(key, config, fid)
        return float(found["fid"])

    def _of(self, seed: int, steps: int) -> list[str]:
        return ["--seed", str(seed), "--training.steps", str(steps), *self.extractor]

    def _config(self, settings: list[str], folder: Path) -> Config:
        return parse_config([*self.settings, *settings, "--output_dir", str(folder)], RECIPES / self.problem.recipe)

    def _add(self, key: dict[str, Any], config: Config, fid: float) -> dict[str, Any]:
        row = {**key, "batch_size": config.training.batch_size, "fid": fid}
        self.record.add(row)
        return row


def plain_fid(config: Config, settings: PlainSettings, accelerator: Accelerator) -> float:
    """What the averaged weights of a plain run score."""
    data = load_cached_images(config.data)
    loop = plain_loop(config, data, settings)
    for _ in range(config.training.steps):
        loop.step()
    loop.ema.copy_to(loop.unet.parameters())
    sampler = evaluation_sampler(config, DDPMScheduler(**config.diffusion), accelerator)
    evaluation = SampleEvaluation(config, data, sampler, accelerator, show_progress=False)
    images = evaluation.draw(loop.unet, config.evaluation.num_images)
    return evaluation.score(images).of(SAMPLES)["fid"]


def plain_loop(config: Config, data: ImageData, settings: PlainSettings) -> PlainLoop:
    """The plain loop on the network, images, batch size and seed of a recipe."""
    torch.manual_seed(config.seed)
    unet = diffusers.UNet2DModel(**{key: value for key, value in config.model.items() if key not in OURS_ONLY})
    return PlainLoop(unet, from_uint8(data.images), config.training.steps, config.training.batch_size, settings)


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
    loop = plain_loop(config, load_cached_images(config.data), START)
    for _ in range(config.training.steps):
        loop.step()
    return 1000 * loop.seconds / config.training.steps


def run(arguments: argparse.Namespace, record: Record) -> None:
    """All runs that are not in the file yet."""
    record.resume()
    Measurements("digits", None, record).run()
    for problem in ("fashion_mnist", "cifar10"):
        folder = getattr(arguments, problem)
        if folder is not None:
            Measurements(problem, folder.resolve(), record).run()


def report(rows: list[dict[str, Any]]) -> str:
    """For each problem: the seeds of each way and length, what was tried, and the tuning of the plain loop."""
    return "\n\n".join(_section(name, [row for row in rows if row["problem"] == name]) for name in PROBLEMS)


def _section(problem: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"{problem}: not measured."
    ways = {"ours": "ours", "before": "ours before", "plain": "plain, tuned"}
    heads = ["loop", "steps", "images seen", "seconds", "FID", "of each seed"]
    pace = _pace_of(rows)
    summary = [
        [words, steps, steps * seeds[0]["batch_size"], f"{steps * pace[way]:.0f}", *_fids(seeds)]
        for way, words in ways.items()
        for steps, seeds in _groups(rows, way).items()
    ]
    parts = [
        f"{problem}: mean ± standard deviation over {len(SEEDS)} seeds. A step takes {1000 * pace['ours']:.0f} ms of "
        f"ours, {1000 * pace['before']:.0f} of ours before, {1000 * pace['plain']:.0f} of the plain loop.",
        table(heads, summary),
    ]
    tried = [row for row in rows if row["way"] in PROBLEMS[problem].tried]
    if tried:
        steps = tried[0]["steps"]
        usual = next(row["fid"] for row in rows if (row["way"], row["seed"], row["steps"]) == ("ours", 0, steps))
        cells = [["ours as it is", f"{usual:.2f}"], *([row["way"], f"{row['fid']:.2f}"] for row in tried)]
        parts += [
            f"{problem}: other settings of ours, seed 0, {steps} steps; seeds differ by as much as some of these.",
            table(["change", "FID"], cells),
        ]
    plain = [row for row in rows if row["way"] == "plain" and row["seed"] == 0]
    tuning = [
        [*(f"{row[name]:.3g}" if isinstance(row[name], float) else row[name] for name in TUNED), f"{row['fid']:.2f}"]
        for row in plain
    ]
    parts += [f"{problem}: the plain loop's settings, seed 0.", table([*TUNED, "FID"], tuning)]
    return "\n\n".join(parts)


def _fids(seeds: list[dict[str, Any]]) -> list[str]:
    fids = [row["fid"] for row in seeds]
    return [over_seeds(fids), ", ".join(f"{fid:.2f}" for fid in fids)]


def _pace_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Loop -> seconds of a step, as the ratios of the rounds have them."""
    found = {row["of"]: row for row in rows if row["way"] == "pace"}
    plain = found["ours"]["ms"] * found["ours"]["ratio"] / 1000
    return {"plain": plain} | {way: plain / row["ratio"] for way, row in found.items()}


def _groups(rows: list[dict[str, Any]], way: str) -> dict[int, list[dict[str, Any]]]:
    """Steps -> the seeds of a way, of the lengths that all seeds have run; of the plain loop its best settings'."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted((row for row in rows if row["way"] == way), key=lambda row: row["seed"]):
        groups.setdefault((row["steps"], *(row.get(name) for name in TUNED)), []).append(row)
    return {key[0]: seeds for key, seeds in sorted(groups.items(), key=str) if len(seeds) == len(SEEDS)}


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """How many times as long the other way takes to its FID as our recipe does."""
    found = []
    for problem in PROBLEMS:
        of_problem = [row for row in rows if row["problem"] == problem]
        curves = {way: _curve(of_problem, way) for way in ("ours", "before", "plain")}
        if not all(curves.values()):
            continue
        pace = _pace_of(of_problem)
        for other, wanted, lower in (("plain", 3.0, 2.2), ("before", 1.0, 1.0)):
            fewer = times_fewer(curves["ours"], curves[other])
            words = "the tuned plain loop" if other == "plain" else "our recipe before"
            for unit, factor in (("images", 1.0), ("seconds", pace[other] / pace["ours"])):
                what = f"{problem}: to the last FID of {words}, its {unit} over ours"
                found.append(Bar(what, factor * fewer["ratio"], at_least=wanted))
                found.append(Bar(f"{what}, lower end of 95%", factor * fewer["low"], at_least=lower))
    return found


def _curve(rows: list[dict[str, Any]], way: str) -> dict[int, list[float]]:
    """Images seen -> the FID of each seed."""
    groups = _groups(rows, way)
    return {steps * seeds[0]["batch_size"]: [row["fid"] for row in seeds] for steps, seeds in groups.items()}
