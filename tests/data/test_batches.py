"""The batch of a step: the same however it is cut up, and its randomness."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_hf.data.augmentation import Augmentation
from ddpm_hf.data.batches import Batch, Batches, ClassLabels, draw_randomness
from ddpm_hf.data.sources import ImageData
from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.images import to_uint8

T = 1000
FIELDS = ("x_0", "t", "noise", "labels", "weights")


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
        Batches(
            data,
            48,
            TimestepSampler(T),
            7,
            one_of(processes, process, accumulation),
            augmentation=Augmentation(flip=random_flip),
            labels=ClassLabels(),
        ).micro_batch(step, index)
        for process in range(processes)
        for index in range(accumulation)
    ]
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 4), (3, 2), (8, 6)])
def test_the_global_batch_is_bitwise_the_same_however_it_is_cut(
    data: ImageData, processes: int, accumulation: int
) -> None:
    for step in (0, 3):
        whole = whole_batch(data, step, 1, 1, random_flip=True)
        cut = whole_batch(data, step, processes, accumulation, random_flip=True)
        for name in FIELDS:
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
    t, flip, noise = draw_randomness(seed=0, step=0, start=0, stop=n, shape=(2, 4, 4), timesteps=TimestepSampler(10))
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
        Batches(data, 10, TimestepSampler(T), 0, one_of(2, accumulation=2))
    with pytest.raises(ValueError, match=r"use 4$"):
        Batches(data, 3, TimestepSampler(T), 0, one_of(4))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_steps_come_in_order_made_ahead_or_not(data: ImageData, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    batches = Batches(data, 8, TimestepSampler(T), 0, one_of(1, accumulation=2))
    made: list[int] = []

    def note(step: int) -> Any:
        made.append(step)
        return lambda: [batches.micro_batch(step, index) for index in range(2)]

    monkeypatch.setattr(batches, "_made", note)
    monkeypatch.setattr(batches, "_device", torch.device(device))  # on any but the CPU the next batch is made ahead
    taken = []
    for step, micro_batches in batches.of_steps(5, 9):
        taken.append(step)
        assert len(micro_batches) == 2
        assert micro_batches[0].labels is None
    assert taken == made == [5, 6, 7, 8]
    assert batches.seconds_waited > 0


def test_what_goes_wrong_in_the_making_of_a_batch_is_raised_to_its_reader(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(data, 8, TimestepSampler(T), 0, one_of(1))
    monkeypatch.setattr(batches, "_device", torch.device("meta"))

    def broken(step: int) -> Any:
        if step == 2:
            raise ValueError("row 7 cannot be decoded")
        return list

    monkeypatch.setattr(batches, "_made", broken)
    with pytest.raises(ValueError, match="row 7"):
        list(batches.of_steps(0, 9))
