"""FID of averages whose length is chosen after the training, against that of the recipe's fixed decay.

Each run keeps averages of the relative lengths 0.05 and 0.1, with 32 snapshots. Afterwards averages of other lengths
are put together, 500 images are drawn of each, and the length with the lowest FID is chosen. What counts is the FID of
1,000 other images, of that length and of the recipe's ema_decay, from the same seeds. All are drawn with eta = 1 in 25
steps. The learning rate falls to zero along a half cosine, as in the recipes, or is constant. Digits are trained for
1,200 steps, Fashion-MNIST at 16x16 for 500, with its own feature network, as in the suite quality.

A third length, 0.15, is also tracked directly, and compared with what the snapshots of the other two give for it.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from scipy.stats import t as student
from torch import Tensor

from benchmarks.measure import in_new_process, in_turn, ratio_of
from benchmarks.quality import RECIPES, our_pace
from benchmarks.record import Bar, Record, over_seeds, table
from benchmarks.small_features import trained_features
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.metrics.table import SAMPLES
from ddpm_hf.training.run import Run
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import build
from ddpm_hf.training.snapshots import FOLDER, Snapshot, average_of, snapshots_in
from train_accelerate import train

PROBLEMS: dict[str, tuple[Path, int, tuple[str, ...]]] = {
    "digits": (Path(__file__).with_name("digits_adam.yaml"), 1200, ()),
    "fashion_mnist": (RECIPES / "fashion_mnist.yaml", 500, ("--data.resolution", "16", "--model.sample_size", "16")),
}
"""Recipe, steps, and settings over the recipe's."""
SCORING = [
    *("--evaluation.metrics", "[fid]", "--evaluation.held_out_split", "null", "--evaluation.num_images", "1000"),
    *("--evaluation.num_inference_steps", "25", "--evaluation.eta", "1"),
    *("--training.sample_every", "null", "--training.checkpoint_every", "null", "--threads", "1", "--quiet"),
]
STORED, TRACKED = (0.05, 0.1), 0.15
LENGTHS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.25)
SCHEDULES = ("cosine", "constant")
SEEDS = (0, 1, 2)
CHOSEN_BY, FRESH = 500, 1000
"""Images."""
OTHER_SEEDS = 10**6
"""How far the seeds of the fresh images are from those of the others."""
PACE_ROUNDS, PACE_STEPS = 7, 40
KEEPING = ("--training.ema_sigma_rels", f"{[*STORED]}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images that are not embedded lie."""
    parser.add_argument("--fashion_mnist", type=Path, help="its folder of parquet files; without it, digits only")
    parser.set_defaults(rounds=None)


def run(arguments: argparse.Namespace, record: Record) -> None:
    """All runs that are not in the file yet."""
    record.resume()
    accelerator = Accelerator(cpu=True)
    for problem in PROBLEMS if arguments.fashion_mnist is not None else ("digits",):
        data = [] if problem == "digits" else ["--data.name", str(arguments.fashion_mnist.resolve())]
        recipe, steps, own_settings = PROBLEMS[problem]
        settings = [*SCORING, *own_settings, *data]
        with tempfile.TemporaryDirectory() as folder:
            extractor = "digits"
            keys = [{"problem": problem, "schedule": s, "seed": seed} for s in SCHEDULES for seed in SEEDS]
            missing = [key for key in keys if record.find(**key) is None]
            if missing and problem != "digits":
                images = load_cached_images(parse_config(settings, recipe).data)
                extractor = str(trained_features(images, Path(folder) / "features.pt"))
            for key in missing:
                own = ["--seed", str(key["seed"]), "--training.lr_schedule", str(key["schedule"])]
                own += ["--training.ema_sigma_rels", f"{[*STORED, TRACKED]}"]
                own += ["--training.steps", str(steps), "--evaluation.extractor", extractor]
                own += ["--output_dir", str(Path(folder) / f"{key['schedule']}-{key['seed']}")]
                config = parse_config([*settings, *own], recipe)
                record.add({**key, "steps": config.training.steps, **measure(config, accelerator)})
        _pace(record)  # so that the digits have it before the longer runs begin


def measure(config: Config, accelerator: Accelerator) -> dict[str, Any]:
    """Train, choose a length, and compare it with the fixed decay on images that it was not chosen by."""
    run = Run(build(config, accelerator))
    train(run)
    unet, evaluation = run.state.unet, run.setup.evaluation

    def fid(number: int) -> float:
        return evaluation.score(evaluation.draw(unet, number)).of(SAMPLES)["fid"]

    # As if the third length had not been tracked.
    snapshots = [replace(one, sigma_rels=STORED) for one in snapshots_in(config.output_dir / FOLDER)]
    averages = {length: average_of(snapshots, length) for length in LENGTHS}
    with run.state.ema.averaged_weights():
        fixed = fid(CHOSEN_BY)
    scan = {}
    for length, average in averages.items():
        unet.load_state_dict(average.tensors())
        scan[length] = fid(CHOSEN_BY)
    best = min(scan, key=lambda length: scan[length])
    evaluation.first_seed += OTHER_SEEDS
    unet.load_state_dict(averages[best].tensors())
    fresh = {"chosen": fid(FRESH)}
    with run.state.ema.averaged_weights():
        fresh["fixed"] = fid(FRESH)
    return {
        "ema_decay": config.training.ema_decays[0],
        "fixed": fixed,
        "scan": scan,
        "best": best,
        "fresh": fresh,
        "profile_errors": {length: average.error for length, average in averages.items()},
        "rebuilt": _rebuilt(run, snapshots),
    }


def _rebuilt(run: Run, snapshots: Sequence[Snapshot]) -> dict[str, float]:
    """Distances from the third length as it was tracked, over its norm: of the one put together, and of the stored."""
    names = [name for name, _ in run.state.unet.named_parameters()]
    by_length = {length: dict(zip(names, tensors, strict=True)) for length, tensors in run.state.ema.by_length.items()}
    tracked = by_length[TRACKED]

    def apart(other: Mapping[str, Tensor]) -> float:
        off = sum(float((other[name].double() - tensor.double()).square().sum()) for name, tensor in tracked.items())
        return math.sqrt(off / sum(float(tensor.double().square().sum()) for tensor in tracked.values()))

    return {
        "put together": apart(average_of(snapshots, TRACKED).tensors()),
        **{f"{length:g}": apart(by_length[length]) for length in STORED},
    }


def _pace(record: Record) -> None:
    """Milliseconds of a step of the digits' recipe with the two averages and without, in turn."""
    if record.find(method="pace") is not None:
        return
    settings = [*SCORING, "--evaluation.extractor", "digits", "--training.steps", str(PACE_STEPS)]
    ways = {
        name: partial(in_new_process, our_pace, [*settings, *more], PROBLEMS["digits"][0])
        for name, more in {"without": (), "with": (*KEEPING, "--training.ema_snapshot_every", "10000")}.items()
    }
    without, with_them = in_turn(ways, PACE_ROUNDS, is_warm=True).values()
    medians = {"without_ms": statistics.median(without), "with_ms": statistics.median(with_them)}
    record.add({"method": "pace", **medians, **ratio_of(with_them, without)})


def report(rows: list[dict[str, Any]]) -> str:
    """The gain of each problem and schedule, then FID over the length."""
    gains, scans = [], []
    for (problem, schedule), seeds in _groups(rows).items():
        fixed, chosen = ([row["fresh"][name] for row in seeds] for name in ("fixed", "chosen"))
        differences = [a - b for a, b in zip(fixed, chosen, strict=True)]
        lengths = ", ".join(f"{row['best']:g}" for row in seeds)
        gains.append([problem, schedule, over_seeds(fixed), lengths, over_seeds(chosen), _interval(differences)])
        of_lengths = [over_seeds([row["scan"][f"{length:g}"] for row in seeds]) for length in LENGTHS]
        scans.append([problem, schedule, over_seeds([row["fixed"] for row in seeds]), *of_lengths])
    of_runs = [row["rebuilt"] for row in rows if "rebuilt" in row]
    rebuilt, stored = (max(one[name] for one in of_runs) for name in ("put together", f"{STORED[-1]:g}"))
    missing = [f"{p} ({s})" for p in PROBLEMS for s in SCHEDULES if (p, s) not in _groups(rows)]
    heads = ["problem", "learning rate", "FID, fixed decay", "chosen lengths", "FID, chosen", "gain, 95 % interval"]
    return "\n\n".join(
        [
            f"Mean ± standard deviation over {len(SEEDS)} seeds, of {FRESH:,} images by which nothing was chosen. The "
            "gain is the mean difference over the seeds, with Student's interval.",
            table(heads, gains),
            f"FID of the {CHOSEN_BY} images by which the length is chosen, over sigma_rel.",
            table(["problem", "learning rate", "fixed decay", *(f"{length:g}" for length in LENGTHS)], scans),
            f"The weights of sigma_rel {TRACKED:g} put together from snapshots of {STORED[0]:g} and {STORED[1]:g} "
            f"differ from the tracked ones by at most {rebuilt:.1e} of their norm, and those of {STORED[-1]:g} by up "
            f"to {stored:.1e}.",
            *([f"Not measured: {', '.join(missing)}."] if missing else []),
            *(
                f"A step of the digits with two averages more takes {_ratio(row)} of one without."
                for row in _paces(rows)
            ),
        ]
    )


def _paces(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row on the time of a step, if it has been measured."""
    return [row for row in rows if row.get("method") == "pace"]


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def _interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval by Student's distribution."""
    mean, half = statistics.fmean(values), 0.0
    if len(values) > 1:
        half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(problem, schedule) -> its seeds, where all have been run."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "schedule" in row:
            groups.setdefault((row["problem"], row["schedule"]), []).append(row)
    return {key: seeds for key, seeds in groups.items() if len(seeds) == len(SEEDS)}


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """An average that was put together is the tracked one, the choice does no harm, and it costs little."""
    rebuilt = max(row["rebuilt"]["put together"] for row in rows if "rebuilt" in row)
    found = [Bar("averages, relative error of one put together against the tracked one", rebuilt, at_most=1e-3)]
    for row in _paces(rows):
        found.append(Bar("averages, a step with two of relative lengths over one without", row["ratio"], at_most=1.05))
    for (problem, schedule), seeds in _groups(rows).items():
        chosen, fixed = (statistics.fmean(row["fresh"][name] for row in seeds) for name in ("chosen", "fixed"))
        what = f"{problem}, {schedule} learning rate: FID of the chosen length over that of the fixed decay"
        found.append(Bar(what, chosen / fixed, at_most=1))
    return found
