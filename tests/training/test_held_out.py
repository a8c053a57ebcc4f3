"""The loss on held-out images: the same noise each time, the same numbers on any number of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ddpm_hf import DDPMScheduler
from ddpm_hf.diffusion.losses import Objective
from ddpm_hf.images import from_uint8
from ddpm_hf.randomness import random_stream
from ddpm_hf.training.held_out import HeldOutLoss
from tests.runs import start_processes_of


class Scaled(nn.Module):
    """Says that the noise is some part of x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.modes: list[bool] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        self.modes.append(self.training)
        return self.scale * x_t


def held_out(model: Scaled, images: int = 10, batch_size: int = 4) -> HeldOutLoss:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, 1, 4, 4), dtype=np.uint8))
    denoiser = DDPMScheduler().denoiser.without_restriction().of(model)
    return HeldOutLoss(denoiser, Objective(), pixels, None, 3, Accelerator(cpu=True), batch_size)


def test_it_is_the_mean_loss_of_each_quarter() -> None:
    model = Scaled()
    found = held_out(model)(model)
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    images = from_uint8(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)))
    expected = np.zeros((10, 4))
    for number, x_0 in enumerate(images.double().numpy()):
        stream = random_stream("held-out loss", 3, number)
        for quarter in range(4):
            t = int((quarter + stream.random()) * 250)
            noise = stream.standard_normal((1, 4, 4), dtype=np.float32)
            x_t = np.sqrt(alphas[t]) * x_0 + np.sqrt(1 - alphas[t]) * noise
            expected[number, quarter] = np.square(0.5 * x_t - noise).mean()
    assert found == pytest.approx(expected.mean(axis=0).tolist(), rel=1e-5)


def test_it_changes_with_the_weights_alone() -> None:
    model = Scaled()
    first = held_out(model)(model)
    assert held_out(model)(model) == first
    assert held_out(model, batch_size=3)(model) == pytest.approx(first, rel=1e-6)
    with torch.no_grad():
        model.scale += 0.1
    assert held_out(model)(model) != first


def test_the_network_is_in_evaluation_mode_meanwhile() -> None:
    model = Scaled().train()
    held_out(model)(model)
    assert model.training
    assert not any(model.modes)


def _write(folder: Path) -> None:
    model = Scaled()
    accelerator = Accelerator(cpu=True)
    (folder / f"{accelerator.process_index}").write_text(repr(held_out(model)(model)))


def test_two_processes_find_the_same_numbers_as_one(tmp_path: Path) -> None:
    start_processes_of(2, _write, tmp_path)
    model = Scaled()
    assert {path.read_text() for path in tmp_path.iterdir()} == {repr(held_out(model)(model))}
