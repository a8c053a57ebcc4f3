"""The one place where images go between uint8 and [-1, 1], and where they are put together and saved."""

import math
from pathlib import Path

from PIL import Image
from torch import Tensor

from ddpm_hf.files import written_whole
from ddpm_hf.pixels import EIGHT_BITS


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to the nearest of 0 .. 255, clipped. Any floating (B, C, H, W) to uint8 (B, C, H, W)."""
    return EIGHT_BITS.from_model(images)


def from_uint8(images: Tensor) -> Tensor:
    """0 .. 255 to [-1, 1] in float32, inverted exactly by `to_uint8`."""
    return EIGHT_BITS.to_model(images)


def to_unit_range(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clipped: the range of diffusers' `pt` and `np` outputs."""
    return (images / 2 + 0.5).clamp(0, 1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """uint8 (B, C, H, W) with C = 1 (grey) or 3 (RGB) to one PIL image each.

    Raises:
        ValueError: for other numbers of channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images with {images.shape[1]} channels are no pictures; expected 1 (grey) or 3 (RGB).")
    arrays = images.cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array) for array in arrays]


def image_grid(images: Tensor, columns: int | None = None, scale: int = 1) -> Image.Image:
    """Images side by side in rows, each pixel `scale` pixels wide, with gaps of one black pixel.

    Args:
        images: uint8 (B, C, H, W), at least one.
        columns: images in a row; as square as can be when None.
        scale: a whole factor of enlargement, without smoothing.
    """
    tiles = to_pil(images)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].width * scale + 1, tiles[0].height * scale + 1
    grid = Image.new(tiles[0].mode, (columns * width - 1, rows * height - 1))
    for i, tile in enumerate(tiles):
        enlarged = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        grid.paste(enlarged, (i % columns * width, i // columns * height))
    return grid


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole; a killed process leaves no half of a picture."""
    with written_whole(path, shared=True) as temporary:
        image.save(temporary, format="PNG")
