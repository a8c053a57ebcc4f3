"""Timesteps: their laws, unbiased weights, and the same draws however a batch is cut."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_hf.data.batches import Batches, ClassLabels, draw_randomness, dropped_labels
from ddpm_hf.data.sources import ImageData
from ddpm_hf.diffusion.timestep_sampling import HISTORY, ImportanceTimesteps, TimestepSampler, timestep_sampler

NAMES = ("uniform", "stratified", "importance")


def drawn(timesteps: TimestepSampler, step: int, batch_size: int, pieces: int = 1) -> torch.Tensor:
    size = batch_size // pieces
    drawn = torch.cat([draw_randomness(5, step, i * size, (i + 1) * size, (1,), timesteps)[0] for i in range(pieces)])
    return timesteps.to_timesteps(drawn)


def taught(num_train_timesteps: int) -> ImportanceTimesteps:
    """With losses of t + 1 at each t."""
    timesteps = ImportanceTimesteps(num_train_timesteps)
    t = torch.arange(num_train_timesteps).repeat(HISTORY)
    timesteps.update(t, t + 1.0)
    return timesteps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [24, 48])  # 24 ends within a block of draws
def test_draws_do_not_depend_on_how_the_batch_is_cut(name: str, batch_size: int) -> None:
    timesteps = taught(100) if name == "importance" else timestep_sampler(name, 100, batch_size)
    for step in (0, 7):
        whole = drawn(timesteps, step, batch_size)
        assert whole.dtype == torch.int64
        for pieces in (2, 3, 8):
            assert torch.equal(drawn(timesteps, step, batch_size, pieces), whole)
    assert not torch.equal(drawn(timesteps, 0, batch_size), drawn(timesteps, 7, batch_size))


def test_stratified_has_one_time_in_each_part_and_all_times_alike() -> None:
    timesteps = timestep_sampler("stratified", 100, 20)
    counts = torch.zeros(100)
    for step in range(1000):
        t = drawn(timesteps, step, 20)
        assert torch.equal(t // 5, torch.arange(20))
        counts += torch.bincount(t, minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 130  # chi squared of 80 degrees: above 130 once in 3,000 draws


def test_stratified_reaches_every_time_where_the_batch_does_not_divide_them() -> None:
    t = torch.cat([drawn(timestep_sampler("stratified", 10, 4), step, 4) for step in range(2000)])
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert ((counts - 800) ** 2 / 800).sum() < 30


def test_importance_is_uniform_until_every_time_has_a_history() -> None:
    timesteps = ImportanceTimesteps(5)
    t = torch.arange(5).repeat(HISTORY)
    timesteps.update(t[:-1], torch.ones(len(t) - 1))
    assert timesteps.probabilities() == pytest.approx(np.full(5, 0.2))
    assert torch.equal(timesteps.weights(torch.tensor([0, 4])), torch.ones(2))
    timesteps.update(t[-1:], torch.tensor([2.0]))
    assert timesteps.probabilities()[4] > 0.2


def test_importance_goes_by_the_root_mean_square_of_the_last_ten() -> None:
    timesteps = taught(4)
    timesteps.update(torch.full((15,), 2), torch.cat([torch.full((5,), 1e6), torch.arange(10.0)]))  # the first are lost
    roots = np.array([1, 2, np.sqrt(np.square(np.arange(10)).mean()), 4])
    assert timesteps.probabilities() == pytest.approx(0.999 * roots / roots.sum() + 0.001 / 4)


def test_importance_draws_by_its_probabilities_and_its_weights_make_up_for_them() -> None:
    timesteps = taught(10)
    t = drawn(timesteps, 0, 32_000)
    counts, expected = torch.bincount(t, minlength=10), torch.from_numpy(timesteps.probabilities()) * 32_000
    assert ((counts - expected) ** 2 / expected).sum() < 30
    values = torch.randn(10, generator=torch.Generator().manual_seed(0)) + 3
    assert float((timesteps.weights(t) * values[t]).mean()) == pytest.approx(float(values.mean()), rel=0.02)
    exact = torch.from_numpy(timesteps.probabilities()).float() * timesteps.weights(torch.arange(10)) * values
    assert float(exact.sum()) == pytest.approx(float(values.mean()), rel=1e-5)


def test_losses_of_nothing_leave_it_uniform() -> None:
    timesteps = ImportanceTimesteps(3)
    timesteps.update(torch.arange(3).repeat(HISTORY), torch.zeros(3 * HISTORY))
    assert timesteps.probabilities() == pytest.approx(np.full(3, 1 / 3))


def test_a_state_goes_on_bitwise() -> None:
    first, second = taught(10), ImportanceTimesteps(10)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for timesteps in (first, second):
        timesteps.update(torch.tensor([3, 3, 9]), torch.tensor([0.1, 7.0, 2.0]))
    assert (first.probabilities() == second.probabilities()).all()
    assert torch.equal(drawn(first, 4, 64), drawn(second, 4, 64))


class Noting(ImportanceTimesteps):
    """Remembers how likely the last timestep was when timesteps were made, and how often was drawn."""

    def __init__(self, num_train_timesteps: int) -> None:
        super().__init__(num_train_timesteps)
        self.seen: list[float] = []
        self.draws = 0

    def draw(self, stream: np.random.Generator, samples: Any) -> Any:
        self.draws += 1
        return super().draw(stream, samples)

    def to_timesteps(self, drawn: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.probabilities()[-1])
        return super().to_timesteps(drawn)


def test_timesteps_wait_for_the_losses_of_this_step_and_all_else_of_the_next_batch_is_made_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator: Any = SimpleNamespace(
        num_processes=1, process_index=0, gradient_accumulation_steps=1, device=torch.device("cpu"), gather=lambda x: x
    )
    data = ImageData("noise", torch.zeros(8, 1, 2, 2, dtype=torch.uint8), None)
    batches = Batches(data, 8, Noting(4), 0, accelerator)
    expected = batches.micro_batch(0, 0)
    batches.timesteps = timesteps = Noting(4)
    monkeypatch.setattr(batches, "_device", torch.device("meta"))  # on any but the CPU a batch is made ahead
    for step, _ in batches.of_steps(0, 2):
        while timesteps.draws < 2:  # the thread is at it
            time.sleep(0.001)
        assert len(timesteps.seen) == step + 1
        batches.learn([torch.arange(4).repeat(HISTORY)], [torch.tensor([1.0, 1.0, 1.0, 50.0]).repeat(HISTORY)])
    assert timesteps.seen[0] == 0.25
    assert timesteps.seen[1] > 0.9
    assert expected.t.dtype == torch.int64


def test_losses_and_their_timesteps_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device each look is a wait."""
    looks: list[tuple[int, ...]] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: looks.append(tuple(tensor.shape)) or tolist(tensor))
    ImportanceTimesteps(1000).update(torch.tensor([7, 999]), torch.ones(2))
    assert looks == [(2, 2)]


def test_labels_are_dropped_with_their_probability_and_whatever_the_cut() -> None:
    whole = dropped_labels(1, 2, 0, 3200, 0.2)
    assert abs(whole.float().mean() - 0.2) < 0.03
    assert torch.equal(torch.cat([dropped_labels(1, 2, i, i + 100, 0.2) for i in range(0, 3200, 100)]), whole)
    assert not dropped_labels(1, 2, 0, 100, 0.0).any()
    assert not torch.equal(dropped_labels(1, 3, 0, 3200, 0.2), whole)


def test_a_dropped_label_becomes_no_class_and_nothing_else_changes() -> None:
    accelerator: Any = SimpleNamespace(
        num_processes=1, process_index=0, gradient_accumulation_steps=1, device=torch.device("cpu")
    )
    data = ImageData("noise", torch.zeros(64, 1, 2, 2, dtype=torch.uint8), torch.arange(64) % 10)

    def labels(*dropout: Any) -> torch.Tensor:
        batch = Batches(data, 64, TimestepSampler(4), 0, accelerator, labels=ClassLabels(*dropout)).micro_batch(3, 0)
        assert batch.labels is not None
        return batch.labels

    plain, dropped = labels(), labels(0.3, 10)
    lost = dropped_labels(0, 3, 0, 64, 0.3)
    assert 0 < lost.sum() < 64
    assert torch.equal(dropped, torch.where(lost, 10, plain))
