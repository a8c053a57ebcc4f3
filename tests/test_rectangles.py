"""Rectangles, from images of any size to a model of them, its pictures, its scores and its likelihood."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.cli import evaluate, sample
from ddpm_hf.images import scale_of
from ddpm_hf.sampling.denoising import SamplingOptions
from ddpm_hf.sampling.pictures import denoising_path, denoising_strip, interpolation
from tests.networks import TWO_LEVELS
from tests.runs import Started, finished
from tests.test_custom_pipelines import load

HEIGHT, WIDTH = 16, 24
SIZE = f"[{HEIGHT},{WIDTH}]"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide and high ones."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, (width, height) in enumerate([(60, 40), (40, 60), (50, 50), (36, 24)] * 4):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def trained(run: Path, photos: Path, *arguments: object) -> Path:
    recipe = Path(__file__).parents[1] / "configs" / "train" / "photos.yaml"
    few = ["--config", recipe, "--training.steps", 2, "--training.batch_size", 4, "--training.sample_every", 2]
    small = ["--model.attention_head_dim", 8, "--model.layers_per_block", 1]
    return finished(run, *few, *small, "--data.name", photos, "--data.resolution", SIZE, *arguments)


@pytest.fixture(scope="module", params=[1, 2], ids=["pixels", "patches"])
def run(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", photos, "--model.patch_size", request.param)


def ended_well(main: Any, output: Path, *arguments: object) -> Path:
    command = Started([*arguments, "--threads", 1], output, main=main)
    assert command.wait() == [0], command.said()
    return output


def sizes_of(folder: Path) -> set[tuple[int, int]]:
    """Height and width of all images."""
    found = set()
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            found.add(image.size[::-1])
    return found


def test_a_run_follows_the_rectangle(run: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["sample_size"] == [HEIGHT, WIDTH]
    assert json.loads((run / "unet" / "config.json").read_text())["sample_size"] == [HEIGHT, WIDTH]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["resolution"] == [HEIGHT, WIDTH]
    grid = (2 * (HEIGHT + 1) - 1, 2 * (WIDTH + 1) - 1)
    with Image.open(run / "samples" / "step-00000002.png") as image:
        assert image.size[::-1] == grid


def test_a_run_of_rectangles_goes_on_and_refuses_another_shape(run: Path, photos: Path) -> None:
    patch = yaml.safe_load((run / "config.yaml").read_text())["model"]["patch_size"]
    finished_again = trained(run, photos, "--model.patch_size", patch)
    assert json.loads((finished_again / "metrics.json").read_text())["history"][0]["settings"] == {}


def test_samples_are_drawn_and_scored_by_command(run: Path, photos: Path, tmp_path: Path) -> None:
    few = ["--model", run, "--num_images", 6, "--num_inference_steps", 2]
    samples = ended_well(sample.main, tmp_path / "samples", *few)
    assert sizes_of(samples) == {(HEIGHT, WIDTH)}
    torch.jit.script(Flat()).save(tmp_path / "flat.pt")  # type: ignore[no-untyped-call]
    reference = ["--reference", photos, "--reference_resolution", SIZE, "--quiet"]
    scoring = ["--samples", samples, "--extractor", tmp_path / "flat.pt", "--metrics", "fid", "--bootstrap", 0]
    scores = ended_well(evaluate.main, tmp_path / "scores", *reference, *scoring)
    assert json.loads((scores / "metrics.json").read_text())["scores"]["fid"]
    [(height, width)] = sizes_of(scores)
    assert height < width  # a picture of nearest neighbours, six rows of a sample and its five neighbours
    squares = Started(
        ["--reference", photos, "--reference_resolution", 16, *scoring], tmp_path / "no", main=evaluate.main
    )
    assert squares.wait() == [2]
    assert f"give --reference_resolution {SIZE} --reference_channels 3, or other samples" in squares.said()
    bits = ended_well(
        evaluate.main, tmp_path / "bits", *reference, "--model", run, "--metrics", "bits_per_dim", "--likelihood",
        "estimate",
    )  # fmt: skip
    assert json.loads((bits / "metrics.json").read_text())["scores"]["bits_per_dim"]


class Flat(torch.nn.Module):
    """Means of each channel and half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2], images.shape[3]
        assert height < width
        return torch.cat([images[..., : width // 2].float().mean((2, 3)), images[..., height:].float().mean((2, 3))], 1)


@pytest.mark.parametrize("kind", ["denoising", "interpolation", "grid"])
def test_pictures_are_drawn_by_command(run: Path, tmp_path: Path, kind: str) -> None:
    few = ["--model", run, "--num_images", 2, "--num_inference_steps", 3, "--show", kind]
    pictures = ended_well(sample.main, tmp_path / kind, *few)
    tiles = {((height + 1) // (HEIGHT + 1), (width + 1) // (WIDTH + 1)) for height, width in sizes_of(pictures)}
    assert tiles == {{"denoising": (4, 4), "interpolation": (1, 11), "grid": (1, 2)}[kind]}


def model(patch_size: int = 1, **options: Any) -> DDPMCustomPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=(8, 12), **TWO_LEVELS, patch_size=patch_size, **options).eval()
    pipe = DDPMCustomPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_network_of_a_rectangle_is_diffusers() -> None:
    ours = model().unet
    theirs = diffusers.UNet2DModel.from_config(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, 7).sample, theirs(x, 7).sample, rtol=1e-4, atol=1e-5)


def test_plain_diffusers_draws_the_same_rectangles(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    drawn = [
        kind.from_pretrained(tmp_path)(
            num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for kind in (diffusers.DiffusionPipeline, DDPMCustomPipeline)
    ]
    assert drawn[0].shape == (1, 8, 12, 3)
    np.testing.assert_allclose(*drawn, atol=1e-4)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_turned_network_sees_turned_images(patch_size: int) -> None:
    """So height and width are not mistaken for each other, nor the places in a patch."""
    unet = model(patch_size).unet
    turned = UNet2DModel.from_config({**unet.config, "sample_size": (12, 8), "patch_size": patch_size}).eval()
    state = {name: w.transpose(2, 3).contiguous() if w.ndim == 4 else w for name, w in unet.state_dict().items()}
    if patch_size > 1:  # the places in a patch are turned as well
        place = torch.arange(3 * 4).view(3, 2, 2).transpose(1, 2).flatten()
        state["conv_in.weight"] = state["conv_in.weight"][:, place]
        state["conv_out.weight"], state["conv_out.bias"] = (
            state["conv_out.weight"][place],
            state["conv_out.bias"][place],
        )
    turned.load_state_dict(state)
    x = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(turned(x.mT, 5).sample.mT, unet(x, 5).sample, rtol=1e-4, atol=1e-5)


def test_pictures_of_rectangles() -> None:
    pipe = model()
    pipe.scheduler.set_timesteps(3)
    samples, predictions = denoising_path(pipe.unet, pipe.scheduler, [0, 1], SamplingOptions())
    assert samples.shape == predictions.shape == (4, 2, 3, 8, 12)
    scale = scale_of(samples)
    assert scale == 2  # 16 x 24, within 32
    assert scale_of(samples.mT) == scale
    strip = denoising_strip(samples, predictions)
    assert strip.size == (4 * (24 + 1) - 1, 4 * (16 + 1) - 1)
    assert interpolation(pipe.unet, pipe.scheduler, [0, 1], columns=5).size == (5 * 25 - 1, 16)


def test_single_file_pipelines_take_rectangles(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "plain")
    model(num_class_embeds=3).save_pretrained(tmp_path / "conditional")
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:, 6:] = True
    painted = load(DDPMCustomPipeline, str(tmp_path / "plain"), "repaint")
    known = painted(images, mask, num_inference_steps=4, output_type="pt").images
    assert known.shape == images.shape
    torch.testing.assert_close(known[..., :6], images[..., :6] / 2 + 0.5, atol=1e-4, rtol=0)
    guided = load(DDPMCustomPipeline, str(tmp_path / "conditional"), "class_guidance")
    guided.scheduler = DDIMScheduler.from_config(guided.scheduler.config)
    rows = guided([0, 1], guidance_scales=[1.0, 2.0], num_inference_steps=2, output_type="pt").images
    assert rows[0].shape == images.shape
    encoding = load(DDPMCustomPipeline, str(tmp_path / "plain"), "ddim_interpolation")
    assert encoding.encode(images, 3).shape == images.shape
    varied = load(DDPMCustomPipeline, str(tmp_path / "plain"), "variations")
    assert varied(images[:1], strength=0.5, num_inference_steps=4, output_type="pt").images.shape[1:] == (3, 8, 12)
