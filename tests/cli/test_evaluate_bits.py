"""ddpm-hf-evaluate --metrics bits_per_dim: a model's likelihood by each way, and models that have none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.metrics.bits_per_dim import bits_per_dim
from ddpm_hf.pixels import PixelFormat
from tests.cli.scored import refusal, results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **kinds)
    folder = tmp_path_factory.mktemp("model")
    DDPMCustomPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return folder


BITS = ("--metrics", "bits_per_dim", "--reference_split", "test[:5]", "--batch_size", 2)


def test_bits_per_dim_of_a_model_on_two_processes_as_on_one(model: Path, tmp_path: Path) -> None:
    one = results(tmp_path / "one", "--model", model, *BITS)
    assert results(tmp_path / "two", "--model", model, *BITS, processes=2) == one
    (score,) = one["scores"]["bits_per_dim"].values()
    with np.load(tmp_path / "one" / "bits_per_dim.npz") as file:
        found, terms = file["values"], file["terms"]
    assert (found.shape, terms.shape) == ((5,), (5, 21))
    assert score == pytest.approx(found.mean())
    assert np.allclose(terms.sum(axis=1), found)
    pipe, images = DDPMCustomPipeline.from_pretrained(model), load_cached_images(DataConfig(split="test[:5]")).images
    assert score == pytest.approx(bits_per_dim(pipe, images, batch_size=2).mean, rel=1e-6)
    assert (tmp_path / "one" / "bits_per_dim.png").exists()


def test_bits_per_dim_are_those_of_the_models_own_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **kinds).eval()
    for name, pixels in (("deep", PixelFormat.whole("uint16")), ("real", PixelFormat("float32", (0.0,), (1.0,)))):
        pipe = DDPMCustomPipeline(unet, DDPMScheduler(num_train_timesteps=20), pixels.to_dict())
        pipe.save_pretrained(tmp_path / name)
    common, deep = [*BITS, "--likelihood", "estimate"], tmp_path / "deep"
    assert "makes uint16 images and digits has uint8 ones" in refusal(tmp_path / "no", "--model", deep, *common)
    found = results(tmp_path / "bits", "--model", deep, *common, "--reference_dtype", "uint16")
    assert found["scores"]["bits_per_dim"][str(deep)] > 8
    said = refusal(tmp_path / "no", "--model", tmp_path / "real", *common)
    assert "the images are float32, and bits are defined for whole numbers" in said


@pytest.mark.parametrize("method", ["estimate", "ode"])
def test_bits_per_dim_by_quicker_ways(model: Path, tmp_path: Path, method: str) -> None:
    options = ["--ode_rtol", 0.01, "--ode_atol", 0.01] if method == "ode" else []
    found = results(tmp_path / "bits", "--model", model, *BITS, "--likelihood", method, *options)
    assert found["network_evaluations"] == 11 if method == "estimate" else 10 < found["network_evaluations"] < 200
    assert f"asked {found['network_evaluations']:g} times" in found["notes"][0]
    assert np.isfinite(found["scores"]["bits_per_dim"][str(model)])
    assert found["errors"]["bits_per_dim"][str(model)] > 0
    assert found["num_images"] == {str(model): 5}
    assert not (tmp_path / "bits" / "bits_per_dim.png").exists()


def test_a_fixed_grid_asks_twice_a_step(model: Path, tmp_path: Path) -> None:
    found = results(tmp_path / "bits", "--model", model, *BITS, "--likelihood", "ode", "--ode_steps", 4)
    assert (found["network_evaluations"], found["ode_steps"]) == (7, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metrics", "bits_per_dim"], "bits_per_dim scores a --model"),
        ([*BITS, "--model", "m", "--ode_rtol", 0.01], "ode_rtol is 0.01 and is for --metrics bits_per_dim --likel"),
        ([*BITS, "--model", "m", "--likelihood", "ode", "--ode_atol", 0], "ode_atol is 0.0 and must be from 1e-10 to"),
        (["--metrics", "bits_per_dim", "fid", "--model", "x"], "--metrics bits_per_dim alone"),
        ([*BITS, "--model", "nobody/nothing"], "nobody/nothing"),
        ([*BITS, "--model", "{model}", "--reference_resolution", 16], "makes images of (1, 8, 8) and digits has"),
    ],
)
def test_a_model_that_cannot_be_scored_is_one_sentence(
    model: Path, tmp_path: Path, arguments: list[object], sentence: str
) -> None:
    assert sentence in refusal(tmp_path / "bits", *(str(argument).format(model=model) for argument in arguments))
