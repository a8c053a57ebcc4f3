"""From an encoded image of a data set to pixels of the form that all its images share."""

import math
import os
import re
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
from datasets.utils.file_utils import xopen
from PIL import ExifTags, Image, ImageOps

from ddpm_hf.data.folders import shown

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that decode."""

OnCorrupt = Literal["error", "skip"]

ROUNDED = "ddpm_hf: rounded to 8 bits"
"""Mark in an image's ``info``."""

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV")


class CorruptImageError(Exception):
    """An image that cannot be decoded, or to nothing certain; the message is the reason."""


class MisfitError(ValueError):
    """An image that does not go with the first one or with the settings.

    Args:
        problem: What is wrong; lacks its subject.
        remedy: Settings of training that help.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


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
            MisfitError: the image does not go with the settings or with the first one.
        """
        image = self._resize(self._crop(image.convert("L" if self._is_to_be_grey(image.mode) else "RGB")))
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        if self.shape not in (None, pixels.shape):
            raise MisfitError(
                f"has height and width {pixels.shape[1:]} and the first one {self.shape[1:]}",
                "give data.resolution (and data.center_crop true, where some are not square) to bring them to one size",
            )
        return pixels

    def _is_to_be_grey(self, mode: str) -> bool:
        is_grey = mode in GREY_MODES
        channels = self.channels or (self.shape[0] if self.shape else 1 if is_grey else 3)
        if channels == 1 and not is_grey and self.channels is None:
            raise MisfitError("is in colour and the first one is grey", "give data.channels 1 or 3")
        return channels == 1

    def _crop(self, image: Image.Image) -> Image.Image:
        if not self.center_crop:
            return image
        width, height = image.size
        side = min(width, height) if self.center_crop is True else self.center_crop
        if side > min(width, height):
            raise MisfitError(
                f"has height and width {(height, width)}, too small for data.center_crop {side}",
                f"give at most {min(width, height)}, or true for the largest square",
            )
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.resolution is None:
            return image
        if image.width != image.height:
            raise MisfitError(
                f"has height and width {(image.height, image.width)}, and data.resolution {self.resolution} would "
                "distort it",
                "give data.center_crop true as well",
            )
        return image.resize((self.resolution, self.resolution), Image.Resampling[self.resize_filter.upper()])


@dataclass(frozen=True)
class Rows:
    """A data set in the form that it is read in.

    Args:
        name: The data set, for messages.
        dataset: Data set of :mod:`datasets`, map-style or streamed; images not decoded.
        image_column: Holds the images.
        label_column: Holds the labels, integers or text; None where there are none.
        folder: Where relative paths of images start.
        classes: The classes of labels that are text, in order.
        rounded: Places of images of 16 bits that have been read so far; threads append to it.
        advises: Messages name settings of training.
    """

    name: str
    dataset: Any
    image_column: str
    label_column: str | None
    folder: Path = Path()
    classes: tuple[str, ...] | None = None
    rounded: list[str] = field(default_factory=list)
    advises: bool = True

    def read(self, row: dict[str, Any], transform: Transform, where: str) -> npt.NDArray[np.uint8]:
        """The image of ``row``, uint8 ``(C, H, W)``; ``where`` is for messages.

        Raises:
            CorruptImageError: it cannot be decoded.
            ValueError: it cannot be read at all, or does not go with the transform.
        """
        encoded = row[self.image_column]
        subject = f"the image in {self.place(row, where)} of {self.name!r}"
        try:
            image = decode(encoded, self.folder)
            if image.info.get(ROUNDED):
                self.rounded.append(where)
            return transform(image)
        except OSError as error:
            raise ValueError(f"{subject} cannot be read: {error}") from error
        except MisfitError as error:
            said = error if self.advises else f"{error.problem}; all must have one size and colour"
            raise ValueError(f"{subject} {said}") from error

    def place(self, row: dict[str, Any], where: str) -> str:
        """``where`` with the path of the image, where it has one."""
        encoded = row[self.image_column]
        path = encoded.get("path") if isinstance(encoded, dict) else encoded if isinstance(encoded, str) else None
        return f"{where} ({shown(path)})" if path else where

    def label(self, row: dict[str, Any]) -> int:
        """-1 where the row has none."""
        value = row.get(self.label_column or "")
        if value is None:
            return -1
        return int(value) if self.classes is None else self.classes.index(value)


def decode(encoded: Any, folder: Path = Path()) -> Image.Image:
    """An image from what a row holds, turned upright as its EXIF data say, of 8 bits per channel.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``, one of the two alone, or the values as nested lists, ``(H, W)`` or
            ``(H, W, C)``, 0 to 255.
        folder: Relative paths start here.

    Raises:
        CorruptImageError: there is no image, not a whole one, several, or one that has no form in 8 bits.
        OSError: a file that is there cannot be read.
    """
    if isinstance(encoded, list):
        return _from_values(encoded)
    content: Any = encoded.get("bytes") if isinstance(encoded, dict) else encoded
    path: str | None = encoded.get("path") if isinstance(encoded, dict) else None
    if isinstance(content, str):
        content, path = None, content
    if content is None:
        if path is None:
            raise CorruptImageError("the row holds no image")
        # Read apart from decoding: a lost connection or too many open files are no fault of the image.
        try:
            with xopen(path if "://" in path else str(folder / path), "rb") as file:
                content = file.read()
        except FileNotFoundError as error:
            raise CorruptImageError("there is no such file") from error
    if not content:
        raise CorruptImageError("it is empty, 0 bytes")
    if content.startswith(b"version https://git-lfs"):
        raise CorruptImageError("it is a pointer of Git LFS; 'git lfs pull' fetches the image")
    try:
        return _eight_bits(_opened(content))
    except (MemoryError, CorruptImageError):
        raise
    except Image.DecompressionBombError as error:
        raise CorruptImageError(f"it has too many pixels; resize it first ({error})") from error
    except Exception as error:  # PIL's plugins raise almost anything at bytes that they do not expect
        raise CorruptImageError(re.sub(r" <_io\.BytesIO.*>", "", str(error)) or type(error).__name__) from error


def _opened(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(content))
    # The further pictures in a camera's JPEG (MPO) and the layers of a PSD belong to the first one.
    if image.format not in ("MPO", "PSD") and (frames := getattr(image, "n_frames", 1)) > 1:
        raise CorruptImageError(f"it holds {frames} frames; save the one that is meant as an image of its own")
    is_deep = ";16" in str(getattr(image, "tile", [])[:1])  # of colour images PIL keeps the upper 8 bits
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        image = ImageOps.exif_transpose(image)
    if is_deep or image.mode.startswith("I;16"):
        image.info[ROUNDED] = True
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in one of the modes that grey or RGB is made of."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image).astype(np.uint32)
        eight = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        eight.info[ROUNDED] = True
        return eight
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise CorruptImageError(
            f"it has the PIL mode {image.mode!r}, whose range of values is not known; save it as grey or RGB of 8 or "
            "16 bits"
        )
    return image


def _from_values(values: list[Any]) -> Image.Image:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise CorruptImageError("its rows have unequal lengths") from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not is_picture or array.size == 0 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise CorruptImageError(
            f"it is an array of {array.dtype} of shape {array.shape}; expected whole numbers of 0 to 255, (height, "
            "width), (height, width, 1) or (height, width, 3)"
        )
    return Image.fromarray(array.astype(np.uint8))


def settle(rows: Rows, transform: Transform) -> Transform:
    """The transform with the shape that the first readable image gives; as it was where there is none.

    Raises:
        ValueError: an image of data.resolution does not fit into memory.
    """
    free = psutil.virtual_memory().available
    pixel = 2 * (transform.channels or 1)  # PIL's image and the array
    if transform.resolution is not None and pixel * transform.resolution**2 > free:
        raise ValueError(
            f"data.resolution is {transform.resolution}, and an image of that size does not fit into the "
            f"{free / 2**30:.1f} GiB of free memory; give at most {math.isqrt(free // pixel)}"
        )
    for index, row in enumerate(rows.dataset):
        try:
            return replace(transform, shape=rows.read(row, transform, f"row {index}").shape)
        except CorruptImageError:
            continue
    return transform
