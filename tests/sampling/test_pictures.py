"""Pictures of the way out of the noise: of the right images, at the right times, in files that open."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.cli import sample
from ddpm_hf.images import to_uint8
from ddpm_hf.pixels import PixelFormat
from ddpm_hf.randomness import generators_of
from ddpm_hf.sampling.denoising import SamplingOptions
from ddpm_hf.sampling.pictures import denoising_frames, denoising_path, denoising_strip, interpolation, save_gif
from tests.cli.test_sample import make_model
from tests.networks import TWO_LEVELS
from tests.runs import Started

STEPS = 6


def pipe_of(folder: Path, **options: int) -> DDPMCustomPipeline:
    pipe = DDPMCustomPipeline.from_pretrained(make_model(folder / "model", **options))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(STEPS)
    return pipe  # type: ignore[no-any-return]  # diffusers is untyped


def test_the_path_goes_from_the_seeds_noise_to_its_image(tmp_path: Path) -> None:
    pipe = pipe_of(tmp_path)
    samples, predictions = denoising_path(pipe.unet, pipe.scheduler, [5, 6], SamplingOptions(eta=1.0))
    assert samples.shape == predictions.shape == (STEPS + 1, 2, 1, 8, 8)
    noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators_of([5, 6])])
    assert torch.equal(samples[0], to_uint8(noise))
    images = pipe(seeds=[5, 6], num_inference_steps=STEPS, eta=1.0, output_type="uint8").images
    assert torch.equal(samples[-1], images)
    assert torch.equal(predictions[-1], images)
    output = pipe.unet(noise, pipe.scheduler.timesteps[0]).sample
    first = pipe.scheduler.step(output, pipe.scheduler.timesteps[0], noise).pred_original_sample
    assert torch.equal(predictions[0], to_uint8(first))


def test_the_strip_has_two_rows_for_each_image_and_the_ends_of_the_path() -> None:
    samples = torch.arange(21, dtype=torch.uint8).view(21, 1, 1, 1, 1).expand(21, 2, 1, 4, 4)
    samples = samples + torch.tensor([0, 100], dtype=torch.uint8).view(1, 2, 1, 1, 1)
    strip = np.asarray(denoising_strip(samples, samples + 50, columns=5))
    pixels = strip[::33, ::33]  # the first pixel of each picture: 4 pixels, 8 times enlarged, and a gap
    assert pixels.tolist() == [[start + time for time in (0, 5, 10, 15, 20)] for start in (0, 50, 100, 150)]
    assert denoising_strip(samples[:3], samples[:3]).width == 3 * 33 - 1


def test_the_animation_has_a_frame_for_each_time_and_rests_at_the_end(tmp_path: Path) -> None:
    samples = torch.randint(256, (7, 3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames = denoising_frames(samples, samples.flip(0))
    assert len(frames) == 7
    assert frames[0].size == (3 * 33 - 1, 2 * 33 - 1)
    save_gif(frames, tmp_path / "new" / "way.gif")
    with Image.open(tmp_path / "new" / "way.gif") as animation:
        assert animation.n_frames == 7
        animation.seek(6)
        assert animation.info["duration"] == 2000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["way.gif"]


def test_an_interpolation_begins_and_ends_with_the_images_of_its_seeds(tmp_path: Path) -> None:
    pipe = pipe_of(tmp_path, num_class_embeds=4)
    labels = torch.tensor([3, 1, 0])
    picture = np.asarray(interpolation(pipe.unet, pipe.scheduler, [7, 8, 9], class_labels=labels, columns=4))
    assert picture.shape == (2 * 33 - 1, 4 * 33 - 1)
    for row, (seeds, label) in enumerate([((7, 8), 3), ((8, 9), 1)]):
        ends = pipe(seeds=seeds, class_labels=[label] * 2, num_inference_steps=STEPS, output_type="uint8").images
        for column, image in zip((0, 3), ends[:, 0], strict=True):
            shown = picture[row * 33 : row * 33 + 32 : 4, column * 33 : column * 33 + 32 : 4]
            assert abs(shown.astype(int) - image.numpy()).max() <= 1


def drawn(model: Path, folder: Path, *arguments: object) -> tuple[int | None, str]:
    few = ["--model", model, "--num_inference_steps", 4, "--threads", 1]
    run = Started([*few, *arguments], folder, main=sample.main)
    return run.wait()[0], run.said()


@pytest.mark.parametrize("show", ["denoising", "interpolation", "grid"])
def test_the_command_shows_the_channels_that_are_named_of_values_of_any_type(tmp_path: Path, show: str) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=5, out_channels=5, **(TWO_LEVELS | {"block_out_channels": (8, 8)}))
    pixels = PixelFormat("uint16", (100,), (4000,)).to_dict()
    DDPMCustomPipeline(unet.eval(), DDIMScheduler(), pixels).save_pretrained(tmp_path / "model")
    common = ["--model", tmp_path / "model", "--num_inference_steps", 2, "--threads", 1, "--num_images", 2]

    def picture(folder: str, *arguments: object) -> npt.NDArray[np.uint8]:
        run = Started([*common, "--show", show, *arguments], tmp_path / folder, main=sample.main)
        assert run.wait() == [0], run.said()
        return np.asarray(Image.open(tmp_path / folder / f"{show}.png"))

    three, turned, grey = picture("a"), picture("b", "--shown_channels", 2, 1, 0), picture("c", "--shown_channels", 1)
    assert np.array_equal(turned, three[..., ::-1])
    assert np.array_equal(grey, three[..., 1])
    mapped = picture("d", "--shown_channels", 1, "--colour_map", "turbo")
    assert (mapped[0, 0] == (matplotlib.colormaps["turbo"](int(grey[0, 0]), bytes=True)[:3])).all()


@pytest.mark.parametrize("show", ["denoising", "interpolation", "grid"])
def test_the_command_writes_pictures_and_what_they_are_of(tmp_path: Path, show: str) -> None:
    model, folder = make_model(tmp_path / "model", num_class_embeds=3), tmp_path / "pictures"
    arguments = ["--show", show, "--num_images", 4, "--class_labels", "0-1", "--guidance_scale", 2]
    status, said = drawn(model, folder, *arguments)
    assert status == 0, said
    names = {"denoising.png", "denoising.gif"} if show == "denoising" else {f"{show}.png"}
    assert {path.name for path in folder.iterdir()} == {*names, "manifest.json"}
    assert json.loads((folder / "manifest.json").read_text())["settings"]["show"] == show
    for name in names:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 32
    assert drawn(model, folder, *arguments)[0] == 0
    assert drawn(model, folder, *arguments[2:])[0] == 2  # images do not go among pictures


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--show", "film", "--num_images", 4], "show is 'film' and must be one of denoising, interpolation, grid"),
        (["--shown_channels", 1], "shown_channels is [1] and must be null without --show"),
        (
            ["--show", "grid", "--num_images", 4, "--shown_channels", 1],
            "shown_channels is [1], and the images",
        ),
        (["--show", "denoising"], "num_images is 50000 and must be from 1 to 16 with show denoising"),
        (["--show", "interpolation", "--num_images", 1], "must be from 2 to 16 with show interpolation"),
        (["--show", "interpolation", "--num_images", 2, "--eta", 1], "give --scheduler ddim --eta 0"),
        (["--show", "interpolation", "--num_images", 2, "--scheduler", "ddpm"], "give --scheduler ddim --eta 0"),
        (["--show", "denoising", "--num_images", 2, "--scheduler", "pndm"], "does not say what image it predicts"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path, arguments: list[object], sentence: str) -> None:
    status, said = drawn(make_model(tmp_path / "model"), tmp_path / "pictures", *arguments)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "pictures").exists()


def test_ddpm_shows_its_way_too(tmp_path: Path) -> None:
    pipe = pipe_of(tmp_path)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    samples, _ = denoising_path(pipe.unet, scheduler, [1])
    assert torch.equal(
        samples[-1],
        DDPMCustomPipeline(pipe.unet, scheduler)(seeds=[1], num_inference_steps=STEPS, output_type="uint8").images,
    )
    assert type(pipe.scheduler) is DDIMScheduler
