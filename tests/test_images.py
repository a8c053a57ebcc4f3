"""uint8 and [-1, 1], grids, files."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ddpm_hf.images import (
    CAPTION,
    Display,
    as_pictures,
    from_uint8,
    image_grid,
    save_png,
    to_pil,
    to_uint8,
    to_unit_range,
)
from ddpm_hf.pixels import EIGHT_BITS, TORCH, PixelFormat


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = from_uint8(levels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), levels)


def test_to_pil_is_diffusers_to_the_bit(rng: torch.Generator) -> None:
    images = 1.5 * torch.randn(3, 3, 7, 5, generator=rng)
    theirs = DiffusionPipeline.numpy_to_pil(to_unit_range(images).permute(0, 2, 3, 1).numpy())
    for ours, other in zip(to_pil(to_uint8(images)), theirs, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(other))


def test_grid_places_every_image() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 3) * 50
    grid = np.asarray(image_grid(images, columns=2, scale=2))
    assert grid.shape == (3 * 5 - 1, 2 * 7 - 1)
    assert [grid[0, 0], grid[3, 12], grid[5, 0], grid[5, 7], grid[10, 0], grid[10, 7]] == [0, 50, 100, 150, 200, 0]


def test_save_png(tmp_path: Path) -> None:
    image = image_grid(torch.full((4, 3, 8, 8), 200, dtype=torch.uint8))
    save_png(image, tmp_path / "new" / "grid.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), np.asarray(image))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="images with 2 channels are no pictures"):
        to_pil(torch.zeros(1, 2, 4, 4, dtype=torch.uint8))


def test_pictures_show_any_number_of_channels() -> None:
    levels = torch.tensor([10, 20, 30, 40, 50], dtype=torch.uint8).view(1, 5, 1, 1).expand(2, 5, 3, 4)
    expected = {1: [10], 2: [10, 20, 10], 3: [10, 20, 30], 4: [10, 20, 30], 5: [10, 20, 30]}
    for channels, values in expected.items():
        pictures = as_pictures(levels[:, :channels])
        assert (pictures.shape, pictures.dtype) == ((2, len(values), 3, 4), torch.uint8)
        assert pictures[1, :, 2, 3].tolist() == values
    named = {(4,): [50], (4, 0): [50, 10, 50], (4, 3, 1): [50, 40, 20], (0, 0, 0): [10, 10, 10]}
    for chosen, values in named.items():
        assert as_pictures(levels, Display(channels=chosen))[0, :, 0, 0].tolist() == values


@pytest.mark.parametrize(
    ("format", "values", "shown"),
    [
        (PixelFormat.whole("uint16"), [0, 65535, 32896, 1000], [0, 255, 128, 4]),
        (PixelFormat("uint16", (100,), (4100,)), [0, 100, 2100, 5000], [0, 0, 128, 255]),
        (PixelFormat("float32", (-2.0,), (2.0,)), [-3.0, -2.0, 0.5, 2.0], [0, 0, 159, 255]),
        (PixelFormat("float16", (0.0,), (1.0,)), [0.0, 0.25, 0.75, 1.0], [0, 64, 191, 255]),
        (PixelFormat("uint8", (0,), (100,)), [0, 50, 100, 200], [0, 128, 255, 255]),
    ],
)
def test_pictures_show_values_of_any_type_by_their_range(
    format: PixelFormat, values: list[float], shown: list[int]
) -> None:
    images = torch.tensor(values).to(TORCH[format.dtype]).view(4, 1, 1, 1)
    assert as_pictures(images, Display(format)).flatten().tolist() == shown


def test_one_channel_may_have_a_colour_map() -> None:
    images = torch.tensor([[0, 128], [255, 7]], dtype=torch.uint8).view(2, 2, 1, 1)
    of_one, of_two = Display(colour_map="viridis"), Display(EIGHT_BITS, (1,), "viridis")
    for one, display in ((images[:, 1:], of_one), (images, of_two)):
        pictures = as_pictures(one, display)
        for picture, level in zip(pictures, (128, 7), strict=True):
            expected = [round(255 * part) for part in matplotlib.colormaps["viridis"](level / 255)[:3]]
            assert abs(np.subtract(picture.flatten().tolist(), expected)).max() <= 1


@pytest.mark.parametrize(
    ("display", "sentence"),
    [
        (Display(channels=(5,)), r"shown_channels is \[5\], and the images have the 5 channel\(s\) 0 to 4"),
        (Display(channels=(-1,)), r"shown_channels is \[-1\]"),
        (Display(channels=()), r"shown_channels is \[\]"),
        (Display(channels=(0, 1, 2, 3)), "must name one, two or three"),
        (Display(colour_map="viridis"), "colours one channel, and 3 are shown"),
        (Display(channels=(1,), colour_map="plaid"), "must be one of matplotlib"),
    ],
)
def test_channels_that_there_are_not_are_one_sentence(display: Display, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_pictures(torch.zeros(1, 5, 2, 2, dtype=torch.uint8), display)


def test_captions_stand_below_their_images_and_change_none_of_them() -> None:
    images = torch.full((3, 1, 8, 8), 50, dtype=torch.uint8)
    grid = np.asarray(image_grid(images, columns=3, scale=4, captions=["", "8", "0.123"]))
    assert grid.shape == (32 + 1 + CAPTION - 1, 3 * 33 - 1)
    tiles = [grid[:, 33 * column : 33 * column + 32] for column in range(3)]
    assert all((tile[:32] == 50).all() for tile in tiles)
    ink = [int((tile[33:] > 100).sum()) for tile in tiles]
    assert ink[0] == 0 < ink[1] < ink[2]


def test_opacity_lets_white_through_in_pictures_and_stays_in_pil() -> None:
    images = torch.tensor([200, 100, 0, 51], dtype=torch.uint8).view(1, 4, 1, 1)
    with_opacity = PixelFormat(alpha=True)
    assert as_pictures(images, Display(with_opacity)).flatten().tolist() == [244, 224, 204]
    assert as_pictures(images[:, 2:], Display(with_opacity)).flatten().tolist() == [204]
    assert as_pictures(images, Display(with_opacity, (3,))).flatten().tolist() == [51]
    deep = PixelFormat("uint16", (0,), (65535,), alpha=True)
    assert as_pictures((images.int() * 257).to(torch.uint16), Display(deep)).flatten().tolist() == [244, 224, 204]
    (picture,) = to_pil(images, has_alpha=True)
    assert (picture.mode, picture.getpixel((0, 0))) == ("RGBA", (200, 100, 0, 51))
    assert to_pil(images[:, 2:], has_alpha=True)[0].mode == "LA"
    for channels, has_alpha in ((4, False), (2, False), (3, True), (5, True)):
        with pytest.raises(ValueError, match=f"images with {channels} channels are no pictures"):
            to_pil(torch.zeros(1, channels, 1, 1, dtype=torch.uint8), has_alpha)
