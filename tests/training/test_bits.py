"""The setting with which a CUDA device gives the same bits: its switches, and that the CPU says it needs none."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_hf.command_line import parse_config
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.training.bits import WORKSPACE, repeatable, reserve_workspace
from ddpm_hf.training.idle import idle_on
from tests.networks import TWO_LEVELS

DIGITS = Path(__file__).parents[2] / "configs" / "train" / "digits.yaml"


@pytest.fixture(autouse=True)
def workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "")  # noted, so that it is restored
    monkeypatch.delenv(WORKSPACE)


def switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return enabled, warns, torch.utils.deterministic.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark


def test_the_switches_are_set_for_the_time_and_as_they_were_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = switches()
        with repeatable(False):
            assert switches() == before
        assert WORKSPACE not in os.environ
        seen: list[Any] = []
        with suppress(KeyError), repeatable(True):
            seen = [*switches(), os.environ[WORKSPACE]]
            raise KeyError
        assert seen == [True, False, False, True, False, ":4096:8"]
        assert switches() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_workspace_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    reserve_workspace()
    assert os.environ[WORKSPACE] == ":16:8"


def test_a_step_of_the_network_has_such_algorithms_and_the_bits_of_the_cpu_stay() -> None:
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=3, dropout=0.1, **TWO_LEVELS)
    x, t, labels = torch.ones(2, 1, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 2])

    def gradients(wanted: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        unet.zero_grad()
        with repeatable(wanted):
            unet.train()(x, t, labels).sample.square().sum().backward()
        return [parameter.grad for parameter in unet.parameters() if parameter.grad is not None]

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_on_another_device_it_is_said_to_do_nothing() -> None:
    config = parse_config(["--training.deterministic", "true", "--training.tf32", "true"], DIGITS)
    assert idle_on("cuda", config) == []
    assert idle_on("cpu", config) == [
        "training.tf32 is true and does nothing on cpu: it chooses a type of products of NVIDIA GPUs",
        "training.deterministic is true and does nothing on cpu: it chooses among algorithms of CUDA",
    ]
    assert idle_on("cpu", replace(config, training=replace(config.training, deterministic=False, tf32=False))) == []
