"""What cannot fit is refused before it is built, with the number that would."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_hf import launch
from ddpm_hf.command_line import parse_config
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.training import needs
from ddpm_hf.training.needs import check_batch, check_needs, in_units, memory_of, parameters_of
from ddpm_hf.training.settings import Config
from tests.runs import ended

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "digits.yaml"
ONE: Any = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, gradient_accumulation_steps=1, distributed_type=None
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse_config(["--output_dir", str(tmp_path / "a" / "run")], default_recipe=RECIPE)


def test_weights_are_counted_without_being_made(config: Config) -> None:
    assert parameters_of(config.model) == sum(p.numel() for p in UNet2DModel(**config.model).parameters())


def test_a_network_that_does_not_fit_is_refused_and_one_that_does_is_not(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights, gradients, two moments and an average, of four bytes each.
    size = 20 * parameters_of(config.model)
    monkeypatch.setattr(needs, "memory_of", lambda accelerator: size)
    check_needs(config, ONE)
    monkeypatch.setattr(needs, "memory_of", lambda accelerator: size - 1)
    with pytest.raises(ValueError, match=r"the network has [\d,]+ weights, which .* of memory; lower model.block_out"):
        check_needs(config, ONE)


def test_the_largest_batch_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "memory_of", lambda accelerator: 2**20)
    shape = (1, 8, 8)  # four tensors of 256 bytes an image: 1024 images
    for pieces in (1, 4):
        place = SimpleNamespace(**{**vars(ONE), "gradient_accumulation_steps": pieces})
        training = replace(config.training, batch_size=1024 * pieces, gradient_accumulation_steps=pieces)
        check_batch(shape, training, place)
        with pytest.raises(ValueError, match=f"it must be below {1024 * pieces}$"):
            check_batch(shape, replace(training, batch_size=1025 * pieces), place)


def test_checkpoints_that_the_disk_cannot_take_are_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    one = parameters_of(config.model) * 4
    training = replace(config.training, steps=100, checkpoint_every=10, checkpoints_total_limit=3)
    config = replace(config, training=training)

    def left(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))

    left(4 * 4 * one + one)  # four checkpoints of weights, two moments and an average; and the pipeline
    check_needs(config, ONE)
    left(4 * 4 * one + one - 1)
    with pytest.raises(ValueError, match=r"training.checkpoints_total_limit 2 would fit, or give another --output_dir"):
        check_needs(config, ONE)
    check_needs(replace(config, training=replace(training, checkpoints_total_limit=2)), ONE)
    config.output_dir.mkdir(parents=True)
    (config.output_dir / "old").write_bytes(b"x")  # what this run itself has there makes room
    check_needs(config, ONE)


def test_averages_of_relative_lengths_and_their_snapshots_are_counted(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = parameters_of(config.model) * 4
    lengths = replace(config.training, steps=100, checkpoint_every=None, ema_sigma_rels=[0.05, 0.1])
    config = replace(config, training=lengths)
    monkeypatch.setattr(needs, "memory_of", lambda accelerator: 7 * one)
    # The one checkpoint, the pipeline, and a snapshot of both each 4 steps.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * one + one + 25 * 2 * one))
    check_needs(config, ONE)
    with pytest.raises(ValueError, match=r"^50 snapshots of averages, 1 checkpoints of .* and the pipeline need .*"):
        check_needs(replace(config, training=replace(lengths, ema_snapshot_every=2)), ONE)
    monkeypatch.setattr(needs, "memory_of", lambda accelerator: 7 * one - 1)
    with pytest.raises(ValueError, match="the network has"):
        check_needs(config, ONE)


def test_memory_is_that_of_the_container_and_shared_by_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "limit").write_text("1000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(launch, "MEMORY_LIMITS", (str(tmp_path / "missing"), str(tmp_path / "none")))
    assert memory_of(ONE) > 2**20
    monkeypatch.setattr(launch, "MEMORY_LIMITS", (str(tmp_path / "limit"),))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of(ONE) == 250


def test_units() -> None:
    sizes = (0, 1023, 1024, 3 * 2**29, 2**60, 2**75)
    assert [in_units(size) for size in sizes] == ["0 bytes", "1023 bytes", "1 KiB", "1.5 GiB", "1 EiB", "3.277e+04 EiB"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.batch_size", 10**9], "training.batch_size is 1000000000, of which each of 1 pieces"),
        (["--model.block_out_channels", "[65536,65536]"], "weights, which with gradients, optimizer and averages"),
        (["--threads", 100_000], "threads is 100000, and this machine has"),
    ],
)
def test_a_run_that_asks_too_much_ends_with_one_sentence(tmp_path: Path, arguments: list[object], said: str) -> None:
    status, all_said = ended(tmp_path / "run", "--training.steps", 3, *arguments)
    assert (status, all_said.count("\n")) == (2, 1), all_said
    assert said in all_said
    assert not (tmp_path / "run").exists()
