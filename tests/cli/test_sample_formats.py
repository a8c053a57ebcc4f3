"""Samples of models of any type and channels, in every kind of file; and plain diffusers loads the models."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.cli import sample
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.pixels import TORCH, PixelFormat
from tests.runs import Started

FORMS = {
    "16 bits": PixelFormat("uint16", (0,), (65535,)),
    "colour of 16 bits": PixelFormat("uint16", (100,), (40_000,)),
    "five bands": PixelFormat("float32", (0.0, -1.0, 200.0, 0.0, 5.0), (1.0, 1.0, 320.0, 1e-3, 6.0)),
    "half": PixelFormat("float16", (-2.0,), (3.0,)),
    "RGBA": PixelFormat("uint8", (0,), (255,), alpha=True),
}
CHANNELS = {"16 bits": 1, "colour of 16 bits": 3, "five bands": 5, "half": 2, "RGBA": 4}


@pytest.fixture(scope="module", params=FORMS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    torch.manual_seed(0)
    channels = CHANNELS[request.param]
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[8, 8],
        down_block_types=["DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D"],
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("model")
    DDPMCustomPipeline(unet, DDIMScheduler(), FORMS[request.param].to_dict()).save_pretrained(folder)
    return folder, request.param


def test_a_pipeline_remembers_its_format_and_plain_diffusers_does_not_mind(model: tuple[Path, str]) -> None:
    folder, name = model
    pipe = DDPMCustomPipeline.from_pretrained(folder)
    assert pipe.format == FORMS[name]
    images = pipe(seeds=range(2), num_inference_steps=2, output_type="np").images
    values = pipe(seeds=range(2), num_inference_steps=2, output_type="values").images
    assert values.dtype == TORCH[FORMS[name].dtype]
    low, high = (torch.tensor(ends)[:, None, None] for ends in (FORMS[name].low, FORMS[name].high))
    expected = low + (high - low) * torch.from_numpy(images).permute(0, 3, 1, 2).double()
    step = {"float32": 1e-4, "float16": 4e-3}.get(FORMS[name].dtype, 1.0)
    assert ((values.double() - expected).abs() <= step * (high - low).clamp(max=1)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = DDIMPipeline.from_pretrained(folder)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    theirs = plain(batch_size=2, generator=generators, num_inference_steps=2, output_type="np").images
    assert abs(theirs - images).max() < 1e-5
    again = folder.with_name(f"{folder.name}-again")
    pipe.save_pretrained(again)
    assert json.loads((again / "model_index.json").read_text())["_pixels"] == FORMS[name].to_dict()


def test_every_kind_of_file_holds_the_values_or_names_those_that_do(model: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = model
    values = DDPMCustomPipeline.from_pretrained(folder)(
        seeds=range(3), num_inference_steps=2, output_type="values"
    ).images
    for format in ("png", "tiff", "npy"):
        words = ["--model", folder, "--num_images", 3, "--num_inference_steps", 2, "--threads", 1, "--format", format]
        run = Started(words, tmp_path / format, main=sample.main)
        if format == "png" and name in ("five bands", "half"):
            assert run.wait() == [2]
            assert f"hold images of {CHANNELS[name]} channels of the type {FORMS[name].dtype}; give" in run.said()
            continue
        assert run.wait() == [0], run.said()
        manifest = json.loads((tmp_path / format / "manifest.json").read_text())
        assert PixelFormat.from_dict(manifest["settings"]["pixels"]) == FORMS[name]
        if name != "RGBA":  # which is laid on white when it is read
            found = load_images(tmp_path / format)
            assert (found.double() - values.double()).abs().max() <= (
                1 if FORMS[name].dtype.startswith("uint") else 1e-4
            )
