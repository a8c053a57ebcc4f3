"""The parts of a training step: the same batch however it is cut up, the learning rate, the log."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from ddpm_hf import DDPMScheduler
from ddpm_hf.config import TrainingConfig
from ddpm_hf.data import ImageData
from ddpm_hf.images import to_uint8
from ddpm_hf.training import (
    Batch,
    Batches,
    MetricsLog,
    check_fit,
    draw_randomness,
    environment,
    learning_rate,
    start_processes,
    usable_cores,
)
from ddpm_hf.unet import UNet2DModel

T = 1000


@pytest.fixture
def data(rng: torch.Generator) -> ImageData:
    images = torch.randint(256, (50, 3, 4, 6), generator=rng, dtype=torch.uint8)
    return ImageData("noise", images, torch.arange(50))


def one_of(processes: int, index: int = 0, accumulation: int = 1) -> Any:
    """As much of an accelerator as tells a process its part of a batch."""
    return SimpleNamespace(
        num_processes=processes,
        process_index=index,
        gradient_accumulation_steps=accumulation,
        device=torch.device("cpu"),
    )


def whole_batch(data: ImageData, step: int, processes: int, accumulation: int, random_flip: bool = False) -> Batch:
    """The global batch put together from the parts of all processes, in order."""
    parts = [
        Batches(data, 48, T, 7, random_flip, one_of(processes, process, accumulation)).micro_batch(step, index)
        for process in range(processes)
        for index in range(accumulation)
    ]
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x_0", "t", "noise", "labels")))


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 4), (3, 2), (8, 6)])
def test_the_global_batch_is_bitwise_the_same_however_it_is_cut(
    data: ImageData, processes: int, accumulation: int
) -> None:
    for step in (0, 3):
        whole = whole_batch(data, step, 1, 1, random_flip=True)
        cut = whole_batch(data, step, processes, accumulation, random_flip=True)
        for name in ("x_0", "t", "noise", "labels"):
            assert torch.equal(getattr(cut, name), getattr(whole, name)), name


def test_a_step_has_its_own_images_timesteps_and_noise(data: ImageData) -> None:
    first, second = whole_batch(data, 0, 1, 1), whole_batch(data, 1, 1, 1)
    for name in ("x_0", "t", "noise"):
        assert not torch.equal(getattr(first, name), getattr(second, name))
    flat = torch.cat([first.noise, second.noise]).flatten(1)
    assert (flat @ flat.T / flat.shape[1] - torch.eye(96)).abs().max() < 0.7  # no noise is used twice


def test_a_batch_holds_the_images_of_the_data_with_their_labels(data: ImageData) -> None:
    batch = whole_batch(data, 2, 1, 1)
    assert batch.labels is not None
    assert torch.equal(to_uint8(batch.x_0), data.images[batch.labels])


def test_flips_mirror_about_half_of_the_images_left_to_right(data: ImageData) -> None:
    plain, flipped = whole_batch(data, 0, 1, 1), whole_batch(data, 0, 1, 1, random_flip=True)
    mirrored = [torch.equal(f, p.flip(-1)) for f, p in zip(flipped.x_0, plain.x_0, strict=True)]
    same = [torch.equal(f, p) for f, p in zip(flipped.x_0, plain.x_0, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 12 <= sum(mirrored) <= 36


def test_randomness_has_the_right_laws() -> None:
    n = 6400
    t, flip, noise = draw_randomness(seed=0, step=0, start=0, stop=n, shape=(2, 4, 4), num_train_timesteps=10)
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 30  # chi squared of 9 degrees: above 30 once in 2,000 draws
    assert abs(flip.float().mean() - 0.5) < 0.03
    assert abs(noise.mean()) < 0.01
    assert abs(noise.var() - 1) < 0.015
    assert noise.dtype == torch.float32
    assert t.dtype == torch.int64


def test_an_uneven_cut_names_the_sizes_that_work(data: ImageData) -> None:
    with pytest.raises(ValueError, match=r"is 10, .* into 2 processes x 2 accumulation steps; use 8 or 12"):
        Batches(data, 10, T, 0, False, one_of(2, accumulation=2))
    with pytest.raises(ValueError, match=r"use 4$"):
        Batches(data, 3, T, 0, False, one_of(4))


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    def rates(schedule: Any) -> list[float]:
        config = TrainingConfig(steps=30, warmup_steps=10, learning_rate=2.0, lr_schedule=schedule)
        return [learning_rate(step, config) for step in range(30)]

    for schedule in ("constant", "cosine", "linear"):
        assert rates(schedule)[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
        assert rates(schedule)[10] == 2.0
    assert rates("constant")[10:] == [2.0] * 20
    assert rates("linear")[10:] == pytest.approx([2.0 * (1 - k / 20) for k in range(20)])
    assert rates("cosine")[10:] == pytest.approx([1 + math.cos(math.pi * k / 20) for k in range(20)])


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert learning_rate(0, TrainingConfig(warmup_steps=0, learning_rate=3.0)) == 3.0


def test_the_log_holds_means_over_the_steps_since_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("an earlier run\n")
    log = MetricsLog(path, Accelerator(cpu=True), images_per_step=4)
    for losses, step in (([1.0, 3.0], 2), ([5.0], 3)):
        for loss in losses:
            log.add(torch.tensor(loss), torch.tensor(2 * loss))
        assert log.write(step, learning_rate=0.1)["loss"] == sum(losses) / len(losses)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"], line["grad_norm"]) for line in lines] == [(2, 2.0, 4.0), (3, 5.0, 10.0)]
    assert all(line["images_per_second"] > 0 for line in lines)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path, bad: float) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", Accelerator(cpu=True), images_per_step=1)
    for loss in (1.0, 1.0, bad, 1.0):
        log.add(torch.tensor(loss), torch.tensor(1.0))
    with pytest.raises(FloatingPointError, match=rf"the loss was {bad} at step 13; try a lower"):
        log.write(14, learning_rate=0.1)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_usable_cores_are_shared_out_over_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    start_processes(None, 1)
    assert torch.get_num_threads() == usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(usable_cores()))
    start_processes(None, 1)
    assert torch.get_num_threads() == 1
    accelerator = start_processes(2, 1)
    assert environment(accelerator)["threads_per_process"] == torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_processes_that_do_not_work_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Accelerator(cpu=True)  # alone, before the launcher's variable appears
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the launcher started 2 processes, but this one sees 1"):
        start_processes(None, 1)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what 'accelerate launch --cpu --num_processes 2' leaves
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match="starts one process whatever number it is given"):
        start_processes(None, 1)


def tiny_unet(**settings: Any) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": (4, 6), "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DModel(**{**blocks, **sizes, **settings})


def test_what_goes_together_passes(data: ImageData) -> None:
    check_fit(data, tiny_unet(), DDPMScheduler(), TrainingConfig())
    check_fit(data, tiny_unet(num_class_embeds=50), DDPMScheduler(), TrainingConfig())


@pytest.mark.parametrize(
    ("model", "diffusion", "training", "said"),
    [
        ({"in_channels": 1}, {}, {}, "give --model.in_channels 3 --model.out_channels 3"),
        ({"sample_size": 4}, {}, {}, r"are 4 x 6 and model.sample_size is 4; give --model.sample_size \[4,6\]"),
        ({"num_class_embeds": 49}, {}, {}, "labels up to 49 and model.num_class_embeds is 49; make it 50 or more"),
        ({}, {"variance_type": "learned_range"}, {}, "'learned_range', which this training does not learn"),
        ({}, {"prediction_type": "score"}, {}, "score"),
        ({}, {"prediction_type": "posterior_mean"}, {"loss_weighting": "min_snr"}, "min_snr"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(
    data: ImageData, model: dict[str, Any], diffusion: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_fit(data, tiny_unet(**model), DDPMScheduler(**diffusion), TrainingConfig(**training))


def test_a_conditional_network_needs_labels(data: ImageData) -> None:
    without = ImageData("noise", data.images, None)
    with pytest.raises(ValueError, match="'noise' has no labels; set it to null"):
        check_fit(without, tiny_unet(num_class_embeds=50), DDPMScheduler(), TrainingConfig())
