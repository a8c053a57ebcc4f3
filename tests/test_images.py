"""uint8 and [-1, 1], grids, files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ddpm_hf.images import from_uint8, image_grid, save_png, to_pil, to_uint8, to_unit_range


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
