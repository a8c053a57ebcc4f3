"""Pictures of points of the plane: densities in a row, and moving."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

EXTENT: Final = 2.5
"""The pictures show [-EXTENT, EXTENT] in both directions; pure noise has a standard deviation of 1."""

# From empty to densest, dark to light.
_COLOURS: Final = np.array(
    [[13, 17, 38], [59, 28, 107], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]], dtype=np.float64
)
_INK: Final = (214, 218, 230)
_PAPER: Final = (13, 17, 38)
_MARGIN: Final = 8
_LINE: Final = 24

RGB = npt.NDArray[np.uint8]


def draw_strip(
    path: Path, times: Sequence[int], backward: Sequence[Tensor], forward: Sequence[Tensor], panels: int = 8
) -> None:
    """Points on their way back from noise (above), and data on its way there (below), at the same times.

    Args:
        path: Path of the PNG file.
        times: From T-1 to -1, clean data.
        backward: points (N, 2) at each time, on the way from noise.
        forward: points (N, 2) at each time, on the way to noise.
        panels: How many times are shown, at most.
    """
    chosen = _moments(len(times), panels)
    panels_of = [[density(points[i]) for i in chosen] for points in (backward, forward)]
    size = panels_of[0][0].shape[0]
    width = _MARGIN + len(chosen) * (size + _MARGIN)
    picture = Image.new("RGB", (width, 3 * _LINE + 2 * size + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(picture)
    for row, (title, images) in enumerate(
        zip(("the model, from noise to data", "the data, noised to the same times"), panels_of, strict=True)
    ):
        top = _LINE + row * (size + _LINE)
        _write(pen, (_MARGIN, top - _LINE + 4), title)
        for column, image in enumerate(images):
            picture.paste(Image.fromarray(image), (_MARGIN + column * (size + _MARGIN), top))
    for column, i in enumerate(chosen):
        _write(pen, (_MARGIN + column * (size + _MARGIN), 2 * (size + _LINE) + 4), _label(times[i]))
    picture.save(path)


def draw_animation(
    path: Path, times: Sequence[int], backward: Sequence[Tensor], forward: Sequence[Tensor], frames: int = 40
) -> None:
    """The same two ways side by side, as a GIF that lingers at its end."""
    chosen = _moments(len(times), frames)
    pictures = []
    for i in chosen:
        images = [density(points[i], size=200) for points in (backward, forward)]
        size = images[0].shape[0]
        picture = Image.new("RGB", (2 * size + 3 * _MARGIN, size + 2 * _LINE), _PAPER)
        pen = ImageDraw.Draw(picture)
        for column, (title, image) in enumerate(zip(("the model", "the data, noised"), images, strict=True)):
            left = _MARGIN + column * (size + _MARGIN)
            _write(pen, (left, 4), title)
            picture.paste(Image.fromarray(image), (left, _LINE))
        _write(pen, (_MARGIN, size + _LINE + 4), _label(times[i]))
        pictures.append(picture.quantize(32, dither=Image.Dither.NONE))
    durations = [60] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)


def density(points: Tensor, size: int = 160, blur: float = 1.2) -> RGB:
    """The points' density as uint8 (size, size, 3).

    Brightness grows with the square root of the density, so that thin places are seen beside dense ones; the densest
    hundredth of the occupied pixels is the brightest colour.

    Args:
        points: (N, 2); those outside of the picture are left out.
        size: Pixels of a side.
        blur: Standard deviation, in pixels, of the Gaussian that stands for each point.
    """
    x, y = points.double().numpy().T
    counts, _, _ = np.histogram2d(-y, x, bins=size, range=[[-EXTENT, EXTENT]] * 2)
    reach = np.arange(-4, 5)
    kernel = np.exp(-((reach / blur) ** 2) / 2)
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel / kernel.sum(), mode="same")
    occupied = counts[counts > 1e-3]
    top = np.quantile(occupied, 0.99) if len(occupied) else 1.0
    brightness = np.sqrt((counts / top).clip(0, 1)) * (len(_COLOURS) - 1)
    channels = [np.interp(brightness, np.arange(len(_COLOURS)), channel) for channel in _COLOURS.T]
    image: RGB = np.stack(channels, axis=-1).round().astype(np.uint8)
    return image


def _moments(number: int, chosen: int) -> list[int]:
    """Which of the times to show: more towards the end, where the shape comes about."""
    to_end = np.linspace(1, 0, chosen) ** 2 * (number - 1)
    return sorted(set((number - 1 - to_end.round()).astype(int).tolist()))


def _label(t: int) -> str:
    return "clean" if t < 0 else f"t = {t}"


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    pen.text(place, text, fill=_INK, font=ImageFont.load_default(13))
