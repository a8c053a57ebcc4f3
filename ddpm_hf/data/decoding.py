"""From an encoded image of a data set to pixels of the form that all its images share."""

import os
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
from datasets.utils.file_utils import xopen
from PIL import Image

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that decode."""

OnCorrupt = Literal["error", "skip"]

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV")


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class Transform:
    """What is done to each image, in this order. Transparency is dropped.

    Args:
        channels: 1 for grey, 3 for RGB; None for what the first image has.
        center_crop: True cuts out the largest centred square, an integer the one of that side.
        resolution: Side of the square that the image is resized to; None keeps its size.
        resize_filter: One of PIL's, such as "lanczos".
        shape: ``(C, H, W)`` of the first image's result, which all others must have; None before the first.
    """

    channels: int | None = None
    center_crop: bool | int = False
    resolution: int | None = None
    resize_filter: str = "lanczos"
    shape: tuple[int, ...] | None = None

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The image as uint8 ``(C, H, W)``.

        Raises:
            ValueError: the image does not go with the settings or with the first one; the message lacks its subject.
        """
        image = self._resize(self._crop(image.convert("L" if self._is_to_be_grey(image.mode) else "RGB")))
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        if self.shape not in (None, pixels.shape):
            raise ValueError(
                f"has height and width {pixels.shape[1:]} and the first one {self.shape[1:]}; give "
                "data.resolution (and data.center_crop true, where some are not square) to bring them to one size"
            )
        return pixels

    def _is_to_be_grey(self, mode: str) -> bool:
        if mode not in GREY_MODES + COLOUR_MODES:
            raise ValueError(
                f"has the PIL mode {mode!r}, which would lose values at 8 bits per channel; convert the data to 8 bits "
                "of grey or RGB first"
            )
        is_grey = mode in GREY_MODES
        channels = self.channels or (self.shape[0] if self.shape else 1 if is_grey else 3)
        if channels == 1 and not is_grey and self.channels is None:
            raise ValueError("is in colour and the first one is grey; give data.channels 1 or 3")
        return channels == 1

    def _crop(self, image: Image.Image) -> Image.Image:
        if not self.center_crop:
            return image
        width, height = image.size
        side = min(width, height) if self.center_crop is True else self.center_crop
        if side > min(width, height):
            raise ValueError(
                f"has height and width {(height, width)}, too small for data.center_crop {side}; give at most "
                f"{min(width, height)}, or true for the largest square"
            )
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.resolution is None:
            return image
        if image.width != image.height:
            raise ValueError(
                f"has height and width {(image.height, image.width)}, and data.resolution {self.resolution} would "
                "distort it; give data.center_crop true as well"
            )
        return image.resize((self.resolution, self.resolution), Image.Resampling[self.resize_filter.upper()])


@dataclass(frozen=True)
class Rows:
    """A data set in the form that it is read in.

    Args:
        name: The data set, for messages.
        dataset: Data set of :mod:`datasets`, map-style or streamed; images not decoded.
        image_column: Holds the images.
        label_column: Holds the labels, integers; None where there are none.
    """

    name: str
    dataset: Any
    image_column: str
    label_column: str | None

    def read(self, row: dict[str, Any], transform: Transform, where: str) -> npt.NDArray[np.uint8]:
        """The image of ``row``, uint8 ``(C, H, W)``; ``where`` is for messages.

        Raises:
            CorruptImageError: it cannot be decoded.
            ValueError: it cannot be read at all, or does not go with the transform.
        """
        encoded = row[self.image_column]
        subject = f"the image in {self.place(row, where)} of {self.name!r}"
        try:
            return transform(decode(encoded))
        except OSError as error:
            raise ValueError(f"{subject} cannot be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"{subject} {error}") from error

    def place(self, row: dict[str, Any], where: str) -> str:
        """``where`` with the path of the image, where it has one."""
        path = (row[self.image_column] or {}).get("path")
        return f"{where} ({path})" if path else where

    def label(self, row: dict[str, Any]) -> int:
        """-1 where the row has none."""
        value = row.get(self.label_column or "")
        return -1 if value is None else int(value)


def decode(encoded: dict[str, Any] | None) -> Image.Image:
    """An image from its bytes or path, turned upright as its EXIF data say.

    Raises:
        CorruptImageError: there is no image, or not a whole one.
        OSError: a file that is there cannot be read.
    """
    if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
        raise CorruptImageError("the row holds no image")
    content = encoded["bytes"]
    if content is None:
        # Read apart from decoding: a lost connection or too many open files are no fault of the image.
        try:
            with xopen(encoded["path"], "rb") as file:
                content = file.read()
        except FileNotFoundError as error:
            raise CorruptImageError("there is no such file") from error
    try:
        image: Image.Image = datasets.Image().decode_example({"bytes": content, "path": encoded["path"]})
        return image
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise almost anything at bytes that they do not expect
        raise CorruptImageError(re.sub(r" <_io\.BytesIO.*>", "", str(error)) or type(error).__name__) from error


def settle(rows: Rows, transform: Transform) -> Transform:
    """The transform with the shape that the first readable image gives; as it was where there is none."""
    for index, row in enumerate(rows.dataset):
        try:
            return replace(transform, shape=rows.read(row, transform, f"row {index}").shape)
        except CorruptImageError:
            continue
    return transform
