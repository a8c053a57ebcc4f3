"""A network on patches of pixels: the plain network between two rearrangements, in files of its own kind."""

import json
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from tests.models.test_unet_2d import TINY
from tests.runs import finished


def make_unet(patch_size: int, channels: int = 3, size: int = 8, **options: int) -> UNet2DModel:
    torch.manual_seed(0)
    config = {**TINY, "sample_size": size, "in_channels": channels, "out_channels": channels, **options}
    return UNet2DModel(**config, patch_size=patch_size).eval()


def space_to_depth(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) to (B, C p p, H / p, W / p): of a channel, the pixels of a patch row by row."""
    images, channels, height, width = x.shape
    out = torch.zeros(images, channels * p * p, height // p, width // p)
    for channel in range(channels):
        for row in range(p):
            for column in range(p):
                out[:, channel * p * p + row * p + column] = x[:, channel, row::p, column::p]
    return out


@pytest.mark.parametrize("patch_size", [2, 4])
def test_it_is_the_plain_network_on_the_rearranged_image(patch_size: int, rng: torch.Generator) -> None:
    patched = make_unet(patch_size, size=16)
    plain = make_unet(1, channels=3 * patch_size**2, size=16 // patch_size)
    plain.load_state_dict(patched.state_dict())
    x, t = torch.randn(2, 3, 16, 16, generator=rng), torch.tensor([3, 700])
    output = patched(x, t).sample
    assert output.shape == x.shape
    torch.testing.assert_close(space_to_depth(output, patch_size), plain(space_to_depth(x, patch_size), t).sample)


def test_prediction_and_variance_are_halves_of_the_channels(rng: torch.Generator) -> None:
    unet = make_unet(2, channels=3, out_channels=6)
    x = torch.randn(1, 3, 8, 8, generator=rng)
    before = unet(x, 3).sample
    unet.conv_out.bias.data[12:] += 1  # those of the second half
    change = unet(x, 3).sample - before
    assert change[:, :3].abs().max() < 1e-6
    torch.testing.assert_close(change[:, 3:], torch.ones(1, 3, 8, 8))


def test_files_go_there_and_back_with_our_classes(tmp_path: Path) -> None:
    unet = make_unet(2)
    DDPMCustomPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["patch_size"] == 2
    pipe = DDPMCustomPipeline.from_pretrained(tmp_path)
    assert pipe.unet.patch_size == 2
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), unet.parameters(), strict=True))
    assert pipe(seeds=[0], num_inference_steps=2, output_type="uint8").images.shape == (1, 3, 8, 8)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path)  # diffusers' pipeline, with our network in it
    assert type(theirs.unet) is UNet2DModel
    images = theirs(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 3)


def test_plain_diffusers_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DDPMCustomPipeline(make_unet(2), DDIMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match="conv_in"):
        diffusers.UNet2DModel.from_pretrained(tmp_path / "model" / "unet")
    monkeypatch.setitem(sys.modules, "ddpm_hf.models.unet_2d", None)  # as where we are not installed
    # Before 0.42 diffusers tries to import it.
    with pytest.raises((ValueError, ImportError), match=r"ddpm_hf\.models\.unet_2d"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")


def test_a_patch_size_of_one_is_nowhere_in_the_files(tmp_path: Path) -> None:
    make_unet(1).save_pretrained(tmp_path)
    assert "patch_size" not in json.loads((tmp_path / "config.json").read_text())
    assert UNet2DModel.from_pretrained(tmp_path).patch_size == 1


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="patch_size=0 must be 1 or more"):
        make_unet(0)
    with pytest.raises(ValueError, match="its 2 levels and patch_size 2 height and width must be multiples of 4"):
        make_unet(2)(torch.zeros(1, 3, 6, 8), 0)


def test_it_trains_by_its_setting(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "--training.steps", 3, "--model.patch_size", 2)
    pipe = DDPMCustomPipeline.from_pretrained(run)
    assert pipe.unet.conv_in.weight.shape == (8, 4, 3, 3)
