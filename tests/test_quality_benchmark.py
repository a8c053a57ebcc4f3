"""What the suites of quality conclude from their rows: by hand, on rows whose answer is known."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import few_steps, five_steps, quality
from benchmarks.plain_loop import PlainSettings
from benchmarks.small_features import trained_features
from benchmarks.time_to_quality import images_to, times_fewer
from ddpm_hf import DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.sampling.samplers import SAMPLERS, make_scheduler


def row(way: str, steps: int, fid: float, seed: int) -> dict[str, object]:
    settings = asdict(quality.START) if way == "plain" else {}
    return {"problem": "digits", "way": way, **settings, "seed": seed, "steps": steps, "batch_size": 64, "fid": fid}


def rows(seeds: Sequence[int] = quality.SEEDS) -> list[dict[str, object]]:
    """FIDs of 600 / steps, with which ours needs 3 times fewer images than the plain loop, and before 2 times."""
    found: list[dict[str, object]] = [
        {"problem": "digits", "way": "pace", "of": way, "ms": ms, "ratio": 99 / ms, "ratio_low": 1.0, "ratio_high": 1.2}
        for way, ms in (("ours", 110.0), ("before", 90.0))
    ]
    for seed in seeds:
        shift = 1 + 0.1 * (seed - 2)
        for way, speed, lengths in (("ours", 3, (200, 600, 1200)), ("before", 2, (450, 900)), ("plain", 1, (1200,))):
            found += [row(way, steps, shift * 600 / (speed * steps), seed) for steps in lengths]
    return found


def test_the_bars_are_ratios_of_images_and_of_seconds_to_the_same_quality() -> None:
    bars = {bar.what.removeprefix("digits: to the last FID of "): bar.measured for bar in quality.bars(rows())}
    of_plain, of_before = "the tuned plain loop, its ", "our recipe before, its "
    assert bars[f"{of_plain}images over ours"] == pytest.approx(3)
    assert bars[f"{of_plain}seconds over ours"] == pytest.approx(3 * 99 / 110)
    assert bars[f"{of_before}images over ours"] == pytest.approx(1.5)
    assert bars[f"{of_before}seconds over ours"] == pytest.approx(1.5 * 90 / 110)
    for words in (of_plain, of_before):
        assert 0 < bars[f"{words}images over ours, lower end of 95%"] < bars[f"{words}images over ours"]


def test_a_length_without_all_its_seeds_does_not_count() -> None:
    assert quality.bars(rows(seeds=quality.SEEDS[:-1])) == []


def test_the_page_tells_of_each_way() -> None:
    page = quality.report(rows())
    assert "| ours | 600 | 38,400 | 66 | 0.33 ± 0.05 | 0.27, 0.30, 0.33, 0.37, 0.40 |" in page
    assert "fashion_mnist: not measured." in page


def test_images_to_a_quality_lie_on_a_line_in_logarithms() -> None:
    curve = {100: 8.0, 400: 2.0, 1600: 1.9}
    assert images_to(4.0, curve) == pytest.approx(200)
    assert images_to(2.0, curve) == pytest.approx(400)
    assert images_to(9.0, curve) == 100  # below the shortest nothing is known
    assert images_to(1.0, curve) == math.inf


def test_the_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    """Two known curves with noise: of many intervals about 95% hold their ratio of 3."""
    stream = np.random.default_rng(0)

    def curve(speed: float, lengths: Sequence[int]) -> dict[int, list[float]]:
        return {n: list(1000 / (speed * n) * np.exp(0.1 * stream.standard_normal(8))) for n in lengths}

    intervals = [times_fewer(curve(3, (100, 250, 500)), curve(1, (900,))) for _ in range(60)]
    held = [interval["low"] <= 3 <= interval["high"] for interval in intervals]
    assert 0.8 < np.mean(held) <= 1
    assert all(interval["low"] < interval["ratio"] < interval["high"] for interval in intervals)
    assert np.mean([interval["high"] - interval["low"] for interval in intervals]) < 1


def test_fewest_evaluations_to_the_same_fid() -> None:
    by_sampler = {
        ("ddim", "leading"): [9, 7, 5, 4],
        ("unipc", "trailing"): [4, 3.5, 3.2, 3],
    }
    table = [
        {"model": "", "sampler": sampler, "grid": grid, "evaluations": budget, "fid": fid}
        for (sampler, grid), fids in by_sampler.items()
        for budget, fid in zip(few_steps.BUDGETS, fids, strict=True)
    ]
    assert [bar.measured for bar in few_steps.bars(table)] == [20 / 5, 50 / 5]
    assert "| best of |  | unipc, trailing |" in few_steps.report(table)


def test_fewest_evaluations_to_the_fid_of_ddim_of_ours_and_of_theirs() -> None:
    measured = {
        ("digits", "ddim", "leading", 50): 1.0,
        ("digits", "ddim", "trailing", 4): 0.5,  # does not count
        ("digits", "adams", "angle", 5): 0.9,
        ("digits", "adams", "angle", 4): 1.1,
        ("digits", "unipc", "leading", 6): 1.0,
        ("cifar10", "ddim", "leading", 50): 1.0,
        ("cifar10", "adams", "angle", 10): 2.0,
    }
    names = ("problem", "sampler", "grid", "evaluations")
    table = [{**dict(zip(names, key, strict=True)), "fid": fid} for key, fid in measured.items()]
    assert [(bar.measured, bar.is_met) for bar in five_steps.bars(table)] == [(5, True), (50, False)]
    said = five_steps.report(table)
    assert "of ours, adams, angle reaches it in 5 (0.900); of diffusers', unipc, leading reaches it in 6" in said
    assert "none of ours reaches it; none of diffusers' reaches it" in said
    assert "| adams | angle | 1.10 | **0.900** |  |  |" in said


def test_a_sampler_with_several_evaluations_a_step_takes_as_many_steps_as_fit() -> None:
    config = DDPMScheduler().config
    steps = {name: [few_steps.steps_of(name, make_scheduler(config, name), b) for b in (5, 20)] for name in SAMPLERS}
    assert steps["ddim"] == steps["unipc"] == [5, 20]
    assert steps["heun"] == steps["kdpm2"] == [3, 10]
    assert steps["pndm"] == [None, 11]


def test_a_seed_is_the_whole_of_a_plain_run() -> None:
    """Weights at the start, batches, noise and timesteps."""

    def sums(seed: int) -> list[float]:
        config = parse_config(["--seed", str(seed), "--training.batch_size", "4"], quality.RECIPES / "digits.yaml")
        torch.randn(seed + 1)  # what was drawn before does not matter
        loop = quality.plain_loop(config, load_cached_images(config.data), PlainSettings())
        for _ in range(2):
            loop.step()
        return [float(weight.detach().double().sum()) for weight in loop.unet.parameters()]

    assert sums(3) == sums(3)
    assert sums(3) != sums(4)


def test_the_features_are_a_file_that_the_extractor_loads(tmp_path: Path) -> None:
    images, labels = torch.randint(256, (256, 1, 16, 16), dtype=torch.uint8), torch.arange(256) % 10
    extractor = load_extractor(str(trained_features(ImageData("", images, labels), tmp_path / "features.pt")))
    assert extractor(images[:3]).shape == (3, 64)


def test_ours_is_on_every_problem_what_the_recipe_of_the_digits_has() -> None:
    """The other problems' own recipe has another optimizer, so its settings are written out."""
    recipe, other = (
        parse_config([], quality.RECIPES / f"{name}.yaml").training for name in ("digits", "fashion_mnist")
    )
    ours = parse_config(list(quality.MUON), quality.RECIPES / "fashion_mnist.yaml").training
    names = ("optimizer", "learning_rate", "betas", "lr_schedule", "warmup_steps", "loss_weighting", "ema_decay")
    assert [getattr(ours, name) for name in names] == [getattr(recipe, name) for name in names]
    assert other.optimizer != ours.optimizer


def test_before_is_the_recipe_of_before() -> None:
    before = parse_config(list(quality.OUR_WAYS["before"]), quality.RECIPES / "digits.yaml").training
    earlier = parse_config([], quality.RECIPES.parents[1] / "benchmarks" / "digits_adam.yaml").training
    assert replace(before, steps=earlier.steps) == earlier
