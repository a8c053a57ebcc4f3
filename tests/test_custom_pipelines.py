"""The files of pipelines/, loaded the way that their docstrings say, with diffusers' loader and with ours."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel

PIPELINES = Path(__file__).parents[1] / "pipelines"
LOADERS = pytest.mark.parametrize("loader", [DiffusionPipeline, DDPMCustomPipeline])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        num_class_embeds=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMCustomPipeline(unet.eval(), DDPMScheduler()).save_pretrained(tmp_path / "conditional")
    unet.register_to_config(num_class_embeds=None)
    unet.class_embedding = None
    DDPMCustomPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "plain")
    return str(tmp_path)


def load(loader: Any, folder: str, name: str) -> Any:
    pipe = loader.from_pretrained(folder, custom_pipeline=str(PIPELINES / f"{name}.py"), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@LOADERS
def test_class_guidance(loader: Any, folder: str) -> None:
    pipe = load(loader, f"{folder}/conditional", "class_guidance")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    rows = pipe([0, 2], guidance_scales=[1.0, 3.0], num_inference_steps=4, output_type="pt").images
    plain = DDPMCustomPipeline(pipe.unet, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    for row, scale in zip(rows, [1.0, 3.0], strict=True):
        expected = plain(
            seeds=[0, 1], class_labels=[0, 2], guidance_scale=scale, num_inference_steps=4, output_type="pt"
        ).images
        assert torch.equal(row, expected)
    assert (rows[0] - rows[1]).abs().max() > 1e-3


@LOADERS
def test_ddim_encodes_and_interpolates(loader: Any, folder: str, tmp_path: Path) -> None:
    pipe = load(loader, f"{folder}/plain", "ddim_interpolation")
    assert type(pipe.scheduler) is DDIMScheduler
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = []
    for steps in (10, 40, 160):
        latents = pipe.encode(images, steps)
        errors.append((pipe.decode(latents, steps) - images).abs().mean().item())
    assert errors[2] < errors[1] / 2 < errors[0] / 4
    assert errors[2] < 0.05
    walk = pipe(latents[0], latents[1], num_images=5, num_inference_steps=160).images
    ends = [torch.tensor(list(image.tobytes())) for image in (walk[0], walk[-1])]
    for end, image in zip(ends, images, strict=True):
        expected = ((image.permute(1, 2, 0) + 1) * 127.5).flatten()
        assert (end - expected).abs().mean() < 0.05 * 127.5
    pipe.save_pretrained(tmp_path / "saved")
    assert type(DDPMCustomPipeline.from_pretrained(tmp_path / "saved").scheduler) is DDIMScheduler


def test_slerp_keeps_the_length(folder: str) -> None:
    pipe = load(DDPMCustomPipeline, f"{folder}/plain", "ddim_interpolation")
    slerp = sys.modules[type(pipe).__module__].slerp
    a, b = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    b = b * a.norm() / b.norm()
    for share in torch.linspace(0, 1, 5):
        torch.testing.assert_close(slerp(a, b, share).norm(), a.norm())
    torch.testing.assert_close(slerp(a, b, torch.tensor(0.0)), a)
    torch.testing.assert_close(slerp(a, b, torch.tensor(1.0)), b)
    torch.testing.assert_close(slerp(a, a, torch.tensor(0.5)), a)
