"""What the suites of quality conclude from their rows: by hand, on rows whose answer is known."""

from pathlib import Path

import pytest
import torch

from benchmarks import few_steps, five_steps, quality
from benchmarks.fashion_features import trained_features
from ddpm_hf import DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.sampling.samplers import SAMPLERS, make_scheduler


def row(method: str, steps: int, marks: dict[str, float], seed: int) -> dict[str, object]:
    key = {"problem": "digits", "method": method, "learning_rate": 1e-3, "seed": seed, "steps": steps}
    return {**key, "batch_size": 64, "marks": marks, "fid": marks[str(steps)]}


def rows(ours: float) -> list[dict[str, object]]:
    """Three seeds: the plain loop ends at 2 on average, and ours, with fewer steps, at `ours`."""
    found = [{"problem": "digits", "method": "pace", "ours_ms": 80.0, "plain_ms": 99.0, "ratio": 1.2}]
    for seed, shift in enumerate((-0.5, 0.0, 0.5)):
        found.append(row("plain", 1000, {"500": 4.0 + shift, "1000": 2.0 + shift}, seed))
        found.append(row("ours", 400, {"200": 3.0 + shift, "400": ours + shift}, seed))
    return found


def test_the_time_to_the_same_quality_is_that_of_the_first_mark_at_or_below_it() -> None:
    images, seconds = quality.bars(rows(ours=2.0))
    assert seconds.measured == pytest.approx(1.2 * 1000 / 400)
    assert images.measured == 1000 / 400
    assert seconds.is_met
    assert images.is_met


def test_a_quality_that_is_not_reached_misses_the_bar() -> None:
    assert [bar.measured for bar in quality.bars(rows(ours=2.1))] == [0, 0]


def test_a_mark_on_the_way_counts() -> None:
    earlier = [row("ours", 800, {"400": 1.9, "800": 1.0}, seed) for seed in range(3)]
    images, seconds = quality.bars([*rows(ours=2.1), *earlier])
    assert seconds.measured == pytest.approx(1.2 * 1000 / 400)
    assert images.measured == 1000 / 400


def test_a_group_without_all_its_seeds_does_not_count() -> None:
    assert quality.bars(rows(ours=2.0)[:-1]) == []


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
        loop = quality.plain_loop(config, load_cached_images(config.data), warmup_steps=1)
        for _ in range(2):
            loop.step()
        return [float(weight.detach().double().sum()) for weight in loop.unet.parameters()]

    assert sums(3) == sums(3)
    assert sums(3) != sums(4)


def test_the_features_are_a_file_that_the_extractor_loads(tmp_path: Path) -> None:
    images, labels = torch.randint(256, (256, 1, 16, 16), dtype=torch.uint8), torch.arange(256) % 10
    extractor = load_extractor(str(trained_features(ImageData("", images, labels), tmp_path / "features.pt")))
    assert extractor(images[:3]).shape == (3, 64)
