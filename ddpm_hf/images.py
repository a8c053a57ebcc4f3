"""The one place where images go between uint8 and [-1, 1], and where they are put together and saved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm_hf.files import written_whole
from ddpm_hf.pixels import EIGHT_BITS, PixelFormat

ENLARGED_TO = 32
"""Side of small images in a picture, in pixels."""
CAPTION = 12
"""Height of the line of text below an image of a grid, in pixels."""


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to the nearest of 0 .. 255, clipped. Any floating (B, C, H, W) to uint8 (B, C, H, W)."""
    return EIGHT_BITS.from_model(images)


def from_uint8(images: Tensor) -> Tensor:
    """0 .. 255 to [-1, 1] in float32, inverted exactly by `to_uint8`."""
    return EIGHT_BITS.to_model(images)


def to_unit_range(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clipped: the range of diffusers' `pt` and `np` outputs."""
    return (images / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Display:
    """How images of any type and number of channels are shown as 8-bit pictures; see `as_pictures`.

    Args:
        format: what their numbers mean; its range goes to 0 .. 255.
        channels: which channels are shown, from 0: one as grey, two as magenta and green, three as red, green and
            blue. None: all of an image with up to three, the first three of one with more; and where the last one is
            opacity, the others on white.
        colour_map: matplotlib's name of the colours for a single channel; None is grey.
    """

    format: PixelFormat = EIGHT_BITS
    channels: tuple[int, ...] | None = None
    colour_map: str | None = None

    def check(self, num_channels: int) -> None:
        """See that images of so many channels can be shown so.

        Raises:
            ValueError: in one sentence that begins with shown_channels or colour_map.
        """
        if self.channels is not None:
            check_channels("shown_channels", self.channels, num_channels)
            if len(self.channels) > 3:
                raise ValueError(f"shown_channels is {list(self.channels)} and must name one, two or three channels")
        if self.colour_map is not None:
            import matplotlib

            shown = len(self.channels or range(num_channels - self.format.alpha))
            if shown > 1:
                raise ValueError(
                    f"colour_map is {self.colour_map} and colours one channel, and {min(shown, 3)} are shown; leave it "
                    "out, or name one channel in shown_channels"
                )
            if self.colour_map not in matplotlib.colormaps:
                raise ValueError(f"colour_map is {self.colour_map} and must be one of matplotlib, such as viridis")


PLAIN: Final = Display()
"""8-bit images as they are; of more than three channels, the first three."""


def check_channels(name: str, channels: Sequence[int], num_channels: int) -> None:
    """See that images have the channels that a setting names.

    Raises:
        ValueError: in one sentence that begins with the setting's name.
    """
    if not channels or not all(0 <= channel < num_channels for channel in channels):
        raise ValueError(
            f"{name} is {list(channels)}, and the images have the {num_channels} channel(s) 0 to {num_channels - 1}; "
            "name some of these"
        )


def as_pictures(images: Tensor, display: Display = PLAIN) -> Tensor:
    """Images of any type and number of channels as 8-bit grey or colour ones.

    Args:
        images: (N, C, H, W), of the type of the display's format.
        display: which channels are shown, and how.

    Returns:
        uint8 (N, 1, H, W) or (N, 3, H, W).

    Raises:
        ValueError: they have no such channels.
    """
    display.check(images.shape[1])
    if not display.format.is_plain:
        images = EIGHT_BITS.from_model(display.format.to_model(images))
    if display.format.alpha and display.channels is None:
        images = _on_white(images)
    channels = list(display.channels or range(min(3, images.shape[1])))
    if len(channels) == 2:
        channels = [channels[0], channels[1], channels[0]]  # magenta and green, which make grey where they are equal
    shown = images if channels == list(range(images.shape[1])) else images[:, channels]
    if display.colour_map is None:
        return shown
    import matplotlib

    colours = matplotlib.colormaps[display.colour_map](torch.arange(256).numpy(), bytes=True)[:, :3]
    return torch.from_numpy(colours)[shown[:, 0].cpu().long()].permute(0, 3, 1, 2)


def _on_white(images: Tensor) -> Tensor:
    """uint8 (N, C + 1, H, W), the last channel opacity, to (N, C, H, W)."""
    colours, opacity = images[:, :-1].float(), images[:, -1:].float() / 255
    return (colours * opacity + 255 * (1 - opacity)).round().to(torch.uint8)


def to_pil(images: Tensor, has_alpha: bool = False) -> list[Image.Image]:
    """uint8 (B, C, H, W) with C = 1 (grey) or 3 (RGB), or one more for opacity, to one PIL image each.

    Raises:
        ValueError: for other numbers of channels.
    """
    check_picture(images.shape[1], has_alpha)
    arrays = images.cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array) for array in arrays]


def scale_of(images: Tensor) -> int:
    """The whole factor by which small images (..., H, W) are enlarged in a picture."""
    return max(1, ENLARGED_TO // max(images.shape[-2:]))


def check_picture(channels: int, has_alpha: bool = False) -> None:
    """Refuse numbers of channels that PIL has no form for.

    Raises:
        ValueError: in one sentence.
    """
    if channels - has_alpha not in (1, 3):
        raise ValueError(
            f"images with {channels} channels are no pictures; expected 1 (grey) or 3 (RGB). Ask a pipeline for "
            "output_type 'values', 'np' or 'pt', or show some channels by images.as_pictures."
        )


def image_grid(
    images: Tensor, columns: int | None = None, scale: int = 1, captions: Sequence[str] | None = None
) -> Image.Image:
    """Images side by side in rows, each pixel `scale` pixels wide, with gaps of one black pixel.

    Args:
        images: uint8 (B, 1 or 3, H, W), at least one; see `as_pictures`.
        columns: images in a row; as square as can be when None.
        scale: a whole factor of enlargement, without smoothing.
        captions: a short text below each image; None leaves no room for any.
    """
    tiles = to_pil(images)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].width * scale + 1, tiles[0].height * scale + 1
    below = CAPTION if captions is not None else 0
    grid = Image.new(tiles[0].mode, (columns * width - 1, rows * (height + below) - 1))
    for i, tile in enumerate(tiles):
        left, top = i % columns * width, i // columns * (height + below)
        enlarged = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        grid.paste(enlarged, (left, top))
        if captions is not None:
            middle = left + width // 2, top + height + below // 2 - 1
            ImageDraw.Draw(grid).text(middle, captions[i], "white", ImageFont.load_default(CAPTION - 2), anchor="mm")
    return grid


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole; a killed process leaves no half of a picture."""
    with written_whole(path, shared=True) as temporary:
        image.save(temporary, format="PNG")
