"""The images and scores of a run, of data of any type and number of channels."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ddpm_hf import DDPMScheduler, UNet2DModel
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.pixels import EIGHT_BITS, PixelFormat
from ddpm_hf.training.evaluation import SampleEvaluation
from ddpm_hf.training.held_out import held_out_images
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import evaluation_sampler

DIGITS = Path(__file__).parents[2] / "configs" / "train" / "digits.yaml"
DEEP = PixelFormat("uint16", (1000,), (5000,))


@cache
def base() -> Config:
    return parse_config([f"--config={DIGITS}", "--quiet"], DIGITS)


def five_bands(number: int = 40) -> ImageData:
    values = np.random.default_rng(0).integers(1000, 5001, (number, 5, 8, 6), dtype=np.uint16)
    return ImageData("bands", torch.from_numpy(values), None, "bands", format=DEEP)


def evaluation(data: ImageData, **settings: Any) -> SampleEvaluation:
    wanted = {"extractor": "pixels", "held_out_split": None, "num_images": 12, "num_inference_steps": 2, **settings}
    config = replace(base(), evaluation=replace(base().evaluation, **wanted))
    accelerator = Accelerator(cpu=True)
    sampler = evaluation_sampler(config, DDPMScheduler(), accelerator)
    return SampleEvaluation(config, data, sampler, accelerator, show_progress=False)


def small_network(channels: int) -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=(8, 6), in_channels=channels, out_channels=channels, **blocks, **kinds)


def test_samples_are_drawn_scored_and_shown_in_the_datas_own_format() -> None:
    found = evaluation(five_bands())
    images = found.draw(small_network(5), 12)
    assert (images.dtype, images.shape) == (torch.uint16, (12, 5, 8, 6))
    values = images.int()
    assert values.min() >= 1000
    assert values.max() <= 5000
    assert values.max() > 4000
    scores = found.score(images)
    assert scores.scores["fid"]["samples"] > 0
    assert not any("as 8 bits" in note for note in scores.notes)
    grid = found.grid(images)
    assert grid.mode == "RGB"
    corner = ((values[0, :3, 0, 0] - 1000) / 4000 * 255).round().tolist()
    assert grid.getpixel((0, 0)) == pytest.approx(tuple(corner), abs=1)
    nearest = found.nearest(images)
    assert nearest is not None
    assert nearest.mode == "RGB"


def test_features_and_pictures_may_be_of_named_channels() -> None:
    found = evaluation(five_bands(), extractor_channels=[4, 0], shown_channels=[4], colour_map="magma")
    images = found.draw(small_network(5), 12)
    assert "the features see the channels [4, 0] of 5" in found.score(images).notes
    grey = evaluation(five_bands(), shown_channels=[4]).grid(images)
    assert (found.grid(images).mode, grey.mode) == ("RGB", "L")
    assert grey.getpixel((0, 0)) == pytest.approx((int(images[0, 4, 0, 0]) - 1000) / 4000 * 255, abs=1)


def write_tiffs(folder: Path, values: np.ndarray[Any, Any]) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(values):
        Image.fromarray(image).save(folder / f"{number}.tiff")


def deep_data(folder: Path, split: str, **settings: Any) -> tuple[Config, ImageData]:
    """Grey images of 16 bits: up to 3,000 in train, up to 9,000 in test."""
    for name, largest in (("train", 3000), ("test", 9000)):
        if not (folder / name).exists():
            values = np.random.default_rng(0).integers(0, largest + 1, (12, 8, 8), dtype=np.uint16)
            write_tiffs(folder / name, values)
    data = replace(base().data, name=str(folder), cache_dir=folder.with_name("cache"), **settings)
    config = replace(base(), data=data, evaluation=replace(base().evaluation, held_out_split=split))
    return config, load_cached_images(data)


def test_held_out_images_mean_what_the_training_images_mean(tmp_path: Path) -> None:
    config, data = deep_data(tmp_path / "images", "test", value_range="percentile")
    found = held_out_images(config, data)
    assert found.format == data.format
    assert data.format.high[0] <= 3000 < found.images.int().max()
    config, data = deep_data(tmp_path / "images", "test")
    assert held_out_images(config, data).format == PixelFormat.whole("uint16")


def test_a_held_out_split_that_there_is_not_is_named(tmp_path: Path) -> None:
    config, data = deep_data(tmp_path / "images", "validation")
    with pytest.raises(ValueError, match=r"evaluation\.held_out_split"):
        held_out_images(config, data)
    config, data = deep_data(tmp_path / "images", "test")
    with pytest.raises(ValueError, match=r"held_out_split 'test' has uint16 images of \(1, 8, 8\) and the training"):
        held_out_images(config, replace(data, format=EIGHT_BITS))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"extractor": "digits"}, "the extractor digits takes images of 1 channel.* in evaluation.extractor_channels"),
        ({"extractor_channels": [5]}, r"evaluation.extractor_channels is \[5\], and the images have the 5 channel"),
        ({"shown_channels": [0, 1, 2, 3]}, "evaluation.shown_channels is .* must name one, two or three"),
        ({"colour_map": "viridis"}, "evaluation.colour_map is viridis and colours one channel"),
        ({"extractor": None, "shown_channels": [7]}, "evaluation.shown_channels is"),
    ],
)  # fmt: skip
def test_channels_that_there_are_not_are_refused_with_the_runs_settings(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluation(five_bands(), **settings)
