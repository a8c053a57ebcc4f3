"""The files of pipelines/, loaded the way that their docstrings say, with diffusers' loader and with ours."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import ddpm_hf
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.models.noisy_classifier import NoisyClassifier
from ddpm_hf.models.unet_2d import UNet2DOutput
from ddpm_hf.recipes import PIPELINES as PIPELINE_FILES
from ddpm_hf.recipes import names_of
from tests.networks import TWO_LEVELS

PIPELINES = Path(__file__).parents[1] / "pipelines"
LOADERS = pytest.mark.parametrize("loader", [DiffusionPipeline, DDPMCustomPipeline])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    unet = UNet2DModel(**TWO_LEVELS, sample_size=8, num_class_embeds=4)
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


class Normal(UNet2DModel):  # type: ignore[misc]  # diffusers is untyped
    """Knows its data: every pixel is normal with variance 0.04."""

    def forward(self, sample: Tensor, timestep: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
        alpha_bar = DDPMScheduler().diffusion.alpha_bar(int(timestep)).to(sample)
        noise = (1 - alpha_bar).sqrt() / (0.04 * alpha_bar + 1 - alpha_bar) * sample
        return UNet2DOutput(torch.cat([noise, torch.zeros_like(noise)], dim=1))


def tilt(x: Tensor, t: Tensor) -> Tensor:
    """log p of class 0 up to a constant: the mean of 3 x_0 over what x_t leaves open. That of class 1 is nearly 0."""
    alpha_bar = DDPMScheduler().alphas_cumprod[t][:, None]
    expected = 0.04 * alpha_bar.sqrt() / (0.04 * alpha_bar + 1 - alpha_bar) * x.flatten(1)
    return torch.stack([3 * expected.sum(dim=1) - 1e4, torch.zeros(len(x))], dim=1)


@LOADERS
def test_classifier_guidance(loader: Any, folder: str) -> None:
    """Of normal data with variance v, that weighted by exp(a x_0) have the mean a v: here 3 x 0.04."""
    DDPMCustomPipeline(UNet2DModel(**TWO_LEVELS, sample_size=8, out_channels=6), DDPMScheduler()).save_pretrained(
        f"{folder}/normal"
    )
    pipe = load(loader, f"{folder}/normal", "classifier_guidance")
    pipe.register_modules(unet=Normal.from_config(pipe.unet.config), scheduler=DDIMScheduler(clip_sample=False))

    def mean(scale: float) -> float:
        images = pipe([0] * 8, tilt, scale, seeds=range(8), num_inference_steps=50, output_type="pt").images
        return float((2 * images - 1).mean())

    plain, once, twice = mean(0), mean(1), mean(2)
    assert abs(plain) < 0.02
    assert once - plain == pytest.approx(0.12, rel=0.03)
    assert twice - plain == pytest.approx(0.24, rel=0.03)
    assert not pipe.unet._forward_hooks

    with pytest.raises(ValueError, match=r"class_labels=\[2\] are not all of the classes 0 .. 1"):
        pipe([2], tilt, num_inference_steps=2)
    with pytest.raises(ValueError, match="either a classifier or a guidance_scale"):
        pipe([0], tilt, guidance_scale=2.0)
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="prediction_type is 'v_prediction', and classifier guidance"):
        pipe([0], tilt)


def test_classifier_guidance_of_a_network_that_knows_classes(folder: str) -> None:
    pipe = load(DDPMCustomPipeline, f"{folder}/conditional", "classifier_guidance")
    pipe.scheduler = DDIMScheduler()
    classifier = NoisyClassifier(
        *(8, 3, 4, ("DownBlock2D", "AttnDownBlock2D"), (8, 16), 1, "conv", 8, 4), time_proj_dim=8
    ).eval()
    options = {"seeds": [0, 1], "num_inference_steps": 4, "output_type": "pt"}
    drawn = {scale: pipe([0, 2], classifier, scale, **options).images for scale in (0.0, 50.0)}
    plain = DDPMCustomPipeline(pipe.unet, pipe.scheduler)(class_labels=[0, 2], **options).images
    torch.testing.assert_close(drawn[0.0], plain)
    assert (drawn[50.0] - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", names_of(PIPELINE_FILES))
def test_a_shipped_pipeline_has_a_name(name: str, folder: str) -> None:
    pipe = DDPMCustomPipeline.from_pretrained(f"{folder}/plain", custom_pipeline=name)
    assert type(pipe).__module__ == f"ddpm_hf.pipelines.{name}"
    by_path = load(DDPMCustomPipeline, f"{folder}/plain", name)
    assert type(pipe).__name__ == type(by_path).__name__
    assert type(pipe.scheduler) is type(by_path.scheduler)
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), by_path.unet.parameters(), strict=True))


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


class Pairs(UNet2DModel):  # type: ignore[misc]  # diffusers is untyped
    """Knows its data: left and right half are normal of variance 1, each pixel and its partner with correlation 0.9."""

    def forward(self, sample: Tensor, timestep: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
        alpha_bar = DDPMScheduler().diffusion.alpha_bar(int(timestep)).to(sample)
        left, right = sample.chunk(2, dim=-1)
        # In sum and difference the two are independent, of variances 1.9 and 0.1.
        means = []
        for value, variance in ((left + right, 1.9), (left - right, 0.1)):
            means.append(alpha_bar.sqrt() * variance / (alpha_bar * variance + 1 - alpha_bar) * value)
        x_0 = torch.cat([means[0] + means[1], means[0] - means[1]], dim=-1) / 2
        return SimpleNamespace(sample=(sample - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt())


def painted_slope(folder: str, num_resamplings: int) -> float:
    """How the painted right halves follow the left ones, which are known."""
    pipe = load(DDPMCustomPipeline, f"{folder}/plain", "repaint")
    pipe.register_modules(
        unet=Pairs.from_config(pipe.unet.config),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    images = 0.3 * torch.randn(
        16, 3, 8, 8, generator=torch.Generator().manual_seed(1)
    )  # within what a picture can show
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    result = (
        pipe(images, mask, num_inference_steps=40, num_resamplings=num_resamplings, output_type="pt").images * 2 - 1
    )
    left, right = result.chunk(2, dim=-1)
    assert (left - images[..., :4].clamp(-1, 1)).abs().max() < 1e-5
    return float((left * right).sum() / left.square().sum())


def test_repaint_keeps_the_known_and_resampling_makes_the_rest_fit(folder: str) -> None:
    once, thrice, often = (painted_slope(folder, count) for count in (1, 3, 10))
    assert once + 0.05 < thrice < often < 0.9  # the more often, the nearer to the truth
    assert often > 0.7


@LOADERS
def test_variations_begin_where_the_strength_says(loader: Any, folder: str) -> None:
    pipe = load(loader, f"{folder}/plain", "variations")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn = {s: pipe(images, strength=s, num_inference_steps=10, output_type="pt").images for s in (0.0, 0.3, 1.0)}
    torch.testing.assert_close(drawn[0.0] * 2 - 1, images)
    # At full strength on the grid whose first time leaves next to nothing: that of the whole reverse process.
    pipe.scheduler.set_timesteps(10)
    first = pipe.scheduler.timesteps[0].item()
    noise = torch.cat([torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    start = pipe.scheduler.diffusion.q_sample(images, first, noise)
    whole = ddpm_hf.sampling.denoising.denoise(pipe.unet, pipe.scheduler, start)
    torch.testing.assert_close(drawn[1.0], ddpm_hf.images.to_unit_range(whole))
    distances = [(drawn[s] - drawn[0.0]).abs().mean().item() for s in (0.3, 1.0)]
    assert 0 < distances[0] < distances[1]
    with pytest.raises(ValueError, match="outside 0"):
        pipe(images, strength=1.5)


def test_the_walk_of_repaint_goes_each_stretch_as_often_as_asked(folder: str) -> None:
    pipe = load(DDPMCustomPipeline, f"{folder}/plain", "repaint")
    walk = sys.modules[type(pipe).__module__].walk
    assert list(walk(3, 10, 10)) == [(3, 2), (2, 1), (1, 0)]
    moves = list(walk(20, 5, 3))
    assert [a for a, _ in moves[1:]] == [b for _, b in moves[:-1]]
    assert moves[0][0] == 20
    assert moves[-1][1] == 0
    assert [moves.count((k, k - 1)) for k in (18, 13, 8, 3)] == [1, 3, 3, 3]
