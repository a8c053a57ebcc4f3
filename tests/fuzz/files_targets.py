"""Every file that the product writes and reads again, damaged: the right bits all the same, or one sentence."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import train_accelerate
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.cli import evaluate, sample
from tests.fuzz.outcomes import Fault, Refused, outcome_of, status_of
from tests.fuzz.rounds import Check, Target
from tests.fuzz.values import Damage, damages
from tests.networks import TWO_LEVELS
from tests.runs import TINY, measured, tensors_of

HF_HOME = "HF_HOME"


def files_under(folder: Path, but: Iterable[str] = ()) -> list[Path]:
    """All files, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in but)


def tiny_pipeline(folder: Path) -> Path:
    """Saved, of the smallest network."""
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, **TWO_LEVELS)
    DDPMCustomPipeline(unet=unet, scheduler=DDIMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return folder


# Checkpoints and the log

EVALUATION = ["--training.lr_schedule", "constant", "--training.checkpoint_every", "2", "--training.log_every", "1"]


def _checkpoints(folder: Path) -> Check:
    whole, unbroken = folder / "whole", folder / "unbroken"
    for place, steps in ((whole, 4), (unbroken, 6)):
        words = [*TINY, *EVALUATION, "--training.steps", steps, "--output_dir", place]
        status, said = status_of(train_accelerate.main, words, folder / "said")
        assert status == 0, said
    tensors, log = tensors_of(unbroken, 6), measured(unbroken)
    broken = folder / "broken"

    def check(damage: Damage) -> None:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
        path = damage.file_in(files_under(broken))
        damage.to(path)
        words = [*TINY, *EVALUATION, "--training.steps", 6, "--output_dir", broken]
        status, said = status_of(train_accelerate.main, words, folder / "said")
        if status:
            return
        name = f"{path.relative_to(broken)}, {damage.kind}"
        _compare(name, tensors_of(broken, 6), tensors)
        other = [line["step"] for line in log if line not in measured(broken)]
        # Half of one line and half of the next can make a line that reads well: it is kept, and told of.
        if measured(broken) != log and "metrics.jsonl is not as it was" not in said:
            raise Fault("silent difference", f"{name}: the log lacks or changed steps {other}: {said}")

    return check


def _compare(name: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if found.keys() != expected.keys():
        raise Fault("silent difference", f"{name}: other tensors")
    for key, tensor in expected.items():
        if not torch.equal(found[key], tensor):
            raise Fault("silent difference", f"{name} [{key}]")


# Caches of images and features


def _caches(folder: Path) -> Check:
    # The fork server's processes inherit its environment, so this process's own cache is what they read.
    cache = folder / "cache"
    words = [*TINY, "--training.steps", 1, "--evaluation.extractor", "digits", "--data.cache_dir", cache / "images"]

    def run() -> tuple[int, str, dict[str, Tensor], dict[str, Any]]:
        shutil.rmtree(folder / "run", ignore_errors=True)
        status, said = status_of(train_accelerate.main, [*words, "--output_dir", folder / "run"], folder / "said")
        if status:
            return status, said, {}, {}
        results = json.loads((folder / "run" / "metrics.json").read_text())
        return status, said, tensors_of(folder / "run", 1), results["scores"]

    status, said, tensors, scores = run()
    assert status == 0, said
    kept = Path(os.environ[HF_HOME], "ddpm_hf")

    def check(damage: Damage) -> None:
        files = [*files_under(cache), *files_under(kept / "features")]
        path = damage.file_in([path for path in files if path.suffix != ".lock"])
        damage.to(path)
        status, _, found, found_scores = run()
        if status == 0:
            _compare(f"{path.name}, {damage.kind}", found, tensors)
            if found_scores != scores:
                raise Fault("silent difference", f"{path.name}, {damage.kind}: scores {found_scores}")
        else:  # a sentence; what it names must be mended before the next input
            shutil.rmtree(cache, ignore_errors=True)
            shutil.rmtree(kept / "features", ignore_errors=True)
            run()

    return check


# Folders of pipelines


def _pipelines(folder: Path) -> Check:
    whole = tiny_pipeline(folder / "whole")
    weights = DDPMCustomPipeline.from_pretrained(whole).unet.state_dict()

    def check(damage: Damage) -> None:
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
        path = damage.file_in(files_under(broken))
        damage.to(path)
        pipe = outcome_of(lambda: DDPMCustomPipeline.from_pretrained(broken))
        if isinstance(pipe, Refused):
            return
        if path.suffix != ".json" or path.name == "hashes.json":  # a config may be edited, and then says something else
            _compare(f"{path.name}, {damage.kind}", pipe.unet.state_dict(), weights)
        pipe.set_progress_bar_config(disable=True)
        images = outcome_of(lambda: pipe(seeds=[0], num_inference_steps=2, output_type="pt").images)
        if not isinstance(images, Refused) and not bool(images.isfinite().all()):
            raise Fault("silent difference", f"{path.name}, {damage.kind}: images with NaN")

    return check


# Samples that are there already, and sets of images to score


def _samples(folder: Path) -> Check:
    model = tiny_pipeline(folder / "model")
    words = ["--model", model, "--num_images", 5, "--num_inference_steps", 2, "--batch_size", 3, "--threads", 1]
    words += ["--quiet", "--timestep_spacing", "trailing"]
    wholes = {}
    for kind in ("png", "npz", "parquet"):
        status, said = status_of(sample.main, [*words, "--format", kind, "--output", folder / kind], folder / "said")
        assert status == 0, said
        wholes[kind] = _pixels(folder / kind)

    def check(example: tuple[str, Damage]) -> None:
        kind, damage = example
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder / kind, broken)
        path = damage.file_in(files_under(broken))
        damage.to(path)
        status, _ = status_of(sample.main, [*words, "--format", kind, "--output", broken], folder / "said")
        if status == 0 and kind == "png" and not np.array_equal(_pixels(broken), wholes[kind]):
            raise Fault("silent difference", f"{path.name}, {damage.kind}: other pixels")

    return check


def _pixels(folder: Path) -> Any:
    return np.array([np.asarray(Image.open(path)) for path in files_under(folder) if path.suffix == ".png"])


def _scored(folder: Path) -> Check:
    """Samples, statistics and scores that ddpm-hf-evaluate reads."""
    model = tiny_pipeline(folder / "model")
    words = ["--model", model, "--num_images", 8, "--num_inference_steps", 2, "--threads", 1, "--quiet"]
    for kind in ("png", "npz", "parquet"):
        spacing = ["--timestep_spacing", "trailing", "--format", kind, "--output", folder / kind]
        status, said = status_of(sample.main, [*words, *spacing], folder / "said")
        assert status == 0, said
    scoring = ["--extractor", "digits", "--bootstrap", 0, "--threads", 1, "--quiet", "--metrics", "fid"]
    statistics = folder / "statistics.npz"

    def evaluated(samples: Path, reference: object, *more: object) -> tuple[int, Any, str]:
        output = folder / "scores"
        shutil.rmtree(output, ignore_errors=True)
        arguments = ["--samples", samples, "--reference", reference, "--output", output, *scoring, *more]
        status, said = status_of(evaluate.main, arguments, folder / "said")
        if status:
            return status, None, said
        return 0, json.loads((output / "metrics.json").read_text())["scores"], said

    truth = {}
    for kind in ("png", "npz", "parquet"):
        status, truth[kind], said = evaluated(folder / kind, "digits", "--save_statistics", statistics)
        assert status == 0, said

    def check(example: tuple[str, Damage]) -> None:
        kind, damage = example
        if kind == "statistics":
            broken = folder / "broken.npz"
            shutil.copy(statistics, broken)
            damage.to(broken)
            status, scores, _ = evaluated(folder / "png", broken)
            name, expected = "statistics", truth["png"]
            if status == 0 and abs(_only(scores) - _only(expected)) > 1e-6 * abs(_only(expected)):
                raise Fault("silent difference", f"{name}, {damage.kind}: {scores} for {expected}")
            return
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder / kind, broken)
        path = damage.file_in(files_under(broken, but=["manifest.json"]))
        damage.to(path)
        if damage.kind == "lost" and kind != "png":
            return
        status, scores, said = evaluated(broken, "digits")
        if status == 0 and _only(scores) != _only(truth[kind]) and not (damage.kind == "lost" and kind == "png"):
            raise Fault("silent difference", f"{path.name}, {damage.kind}: {scores} for {truth[kind]}: {said}")

    return check


def _only(scores: Any) -> float:
    """The score of the one set, whose folder is its name."""
    (value,) = (value for by_set in scores.values() for value in by_set.values())
    return float(value)


TARGETS = {
    "checkpoints": Target(damages, _checkpoints, per_round=10),
    "caches": Target(damages, _caches, per_round=10),
    "pipeline folders": Target(damages, _pipelines),
    "samples there": Target(st.tuples(st.sampled_from(["png", "npz", "parquet"]), damages), _samples, per_round=20),
    "sets to score": Target(
        st.tuples(st.sampled_from(["png", "npz", "parquet", "statistics"]), damages), _scored, per_round=20
    ),
}
