"""The loss on held-out images: the same noise each time, the same numbers on any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from ddpm_hf import DDPMScheduler
from ddpm_hf.data.sources import ImageData
from ddpm_hf.diffusion.losses import Objective
from ddpm_hf.images import from_uint8
from ddpm_hf.pixels import PixelFormat
from ddpm_hf.randomness import random_stream
from ddpm_hf.training.held_out import HeldOutLoss
from tests.runs import Started, ended, finished, log_of, measured, start_processes_of, tensors_of


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
    return HeldOutLoss(denoiser, Objective(), ImageData("", pixels, None), 3, Accelerator(cpu=True), batch_size)


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


def test_images_of_other_types_are_seen_in_their_range() -> None:
    """Values 256 times as far apart in a range 256 times as wide are the same images to the network."""
    model, accelerator = Scaled(), Accelerator(cpu=True)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8))
    denoiser = DDPMScheduler().denoiser.without_restriction().of(model)
    for values, format in (
        ((pixels.int() * 256 + 100).to(torch.uint16), PixelFormat("uint16", (100,), (65380,))),
        (pixels.float() / 8 - 10, PixelFormat("float32", (-10.0,), (255 / 8 - 10,))),
    ):
        data = ImageData("", values, None, format=format)
        found = HeldOutLoss(denoiser, Objective(), data, 3, accelerator, 4)(model)
        assert found == pytest.approx(held_out(model)(model), rel=1e-6)


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


def test_a_run_looks_at_it_and_learns_the_same(tmp_path: Path) -> None:
    """Its lines stand in the log, its picture in samples/, and the weights are those of a run that does not look."""
    short = ["--training.steps", 4, "--training.log_every", 1]
    looks = ["--evaluation.held_out_split", "test", "--evaluation.loss_every", 2]
    plain, looking = finished(tmp_path / "plain", *short), finished(tmp_path / "looking", *short, *looks)
    expected, found = tensors_of(plain, 4), tensors_of(looking, 4)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    lines = {line["step"]: line for line in log_of(looking) if "held_out_loss" in line}
    assert list(lines) == [2, 4]
    quarters = [lines[4][f"held_out_loss_quarter_{i}"] for i in (1, 2, 3, 4)]
    assert lines[4]["held_out_loss"] == pytest.approx(sum(quarters) / 4)
    assert lines[4]["held_out_loss"] != lines[2]["held_out_loss"]
    assert (looking / "samples" / "loss.png").stat().st_size > 1000
    assert [line for line in measured(looking) if "loss" in line] == [
        line for line in measured(plain) if "loss" in line
    ]


def test_it_needs_images_that_are_held_out(tmp_path: Path) -> None:
    status, said = ended(tmp_path, "--evaluation.loss_every", 2, "--evaluation.held_out_split", "null")
    assert (status, "evaluation.loss_every is 2 and must be null, or evaluation.held_out_split" in said) == (2, True)


def test_the_end_of_a_run_tells_whether_samples_are_copies(tmp_path: Path) -> None:
    run = Started(
        ["--training.steps", 2, "--evaluation.extractor", "digits", "--evaluation.num_images", 20], tmp_path / "run"
    )
    assert run.wait() == [0], run.said()
    copying = json.loads((tmp_path / "run" / "metrics.json").read_text())["copying"]["samples"]
    assert 0 <= copying["p_value"] <= 1
    assert copying["samples"] > copying["held_out"] > 0  # noise lies far from any digit
    assert "no nearer to training images than held-out images do" in run.said()
    assert Image.open(tmp_path / "run" / "samples" / "nearest.png").width > 100
