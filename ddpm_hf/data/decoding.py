"""From an encoded image, or an array, to the values that it holds: upright, and of the type that it has.

The one reader of images: those to train on and generated ones to be scored come through :func:`decode`.
"""

import os
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets.utils.file_utils import xopen
from PIL import ExifTags, Image, ImageOps

from ddpm_hf.data.deep_images import deep_png, deep_tiff, is_tiff, upright
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.pixels import LARGEST

# Of 90 to 179 megapixels, which cameras have; PIL refuses more. (Not for one call, as threads share the filters.)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that decode."""

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV")

LARGEST_EXACT = 2**24
"""Up to here float32 holds every whole number."""


@dataclass(frozen=True)
class Decoded:
    """An image's values.

    Args:
        planes: Its channels: for 8 bits one picture of PIL, whose mode is one of those above; for all other types, and
            for 8 bits of other numbers of channels, a picture of the mode F (or L) for each. All have one size.
        dtype: Type of the values, one of `ddpm_hf.pixels.TORCH`.
        opacity: 0 where nothing is seen, up to the largest value of the type, as the planes are; None for none.
        is_rounded: Whether there were 16 bits, of which 8 are left.
    """

    planes: tuple[Image.Image, ...]
    dtype: str = "uint8"
    opacity: Image.Image | None = None
    is_rounded: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.planes[0].size

    @property
    def is_opaque(self) -> bool:
        """Whether nothing shines through."""
        if self.opacity is None:
            return True
        lowest: Any = self.opacity.getextrema()[0]
        return bool(lowest >= self.full)

    @property
    def full(self) -> float:
        """The opacity that lets nothing through."""
        return LARGEST.get(self.dtype, 1)


def decode(encoded: Any, folder: Path = Path(), eight_bits: bool = False) -> Decoded:
    """The values of an image of a row, turned upright as its EXIF data say.

    Args:
        encoded: ``{"bytes": ..., "path": ...}``, one of the two alone, an array ``(H, W)`` or ``(H, W, C)`` of numbers,
            or nested lists of 0 to 255 in that form.
        folder: Relative paths start here.
        eight_bits: Round 16 bits to 8.

    Raises:
        CorruptImageError: there is no image, not a whole one, several, or one whose values are not known.
        OSError: a file that is there cannot be read.
    """
    if isinstance(encoded, np.ndarray):
        return of_array(encoded, eight_bits=eight_bits)
    if isinstance(encoded, list):
        return of_array(_values_of(encoded))
    content = _content_of(encoded, folder)
    if not content:
        raise CorruptImageError("it is empty, 0 bytes")
    if content.startswith(b"version https://git-lfs"):
        raise CorruptImageError("it is a pointer of Git LFS; 'git lfs pull' fetches the image")
    try:
        return _of_bytes(content, eight_bits)
    except (MemoryError, CorruptImageError):
        raise
    except Image.DecompressionBombError as error:
        raise CorruptImageError(f"it has too many pixels; resize it first ({error})") from error
    except Exception as error:  # PIL's plugins raise almost anything at bytes that they do not expect
        raise CorruptImageError(re.sub(r" <_io\.BytesIO.*>", "", str(error)) or type(error).__name__) from error


def of_array(values: npt.NDArray[Any], opacity: npt.NDArray[Any] | None = None, eight_bits: bool = False) -> Decoded:
    """An array as an image.

    Args:
        values: ``(H, W)`` or ``(H, W, C)`` of numbers; types without a place in `ddpm_hf.pixels.TORCH` become float32,
            and booleans 0 and 255.
        opacity: ``(H, W)``, of the same type.
        eight_bits: Round 16 bits to 8.

    Raises:
        CorruptImageError: it has another form, or numbers that are not finite or that float32 does not hold.
    """
    array = values[..., None] if values.ndim == 2 else values
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "buif":
        raise CorruptImageError(
            f"it is an array of {values.dtype} of shape {values.shape}; expected numbers, (height, width) or (height, "
            "width, channels)"
        )
    is_rounded = eight_bits and array.dtype == np.uint16
    if is_rounded:
        array, opacity = _rounded(array), None if opacity is None else _rounded(opacity)
    array = _of_known_type(array)
    dtype = array.dtype.name
    if dtype == "uint8" and array.shape[2] in (1, 3):
        planes: tuple[Image.Image, ...] = (Image.fromarray(array[..., 0] if array.shape[2] == 1 else array),)
    else:
        planes = tuple(_plane(array[..., channel]) for channel in range(array.shape[2]))
    return Decoded(planes, dtype, None if opacity is None else _plane(opacity), is_rounded)


def _plane(values: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(values if values.dtype == np.uint8 else values.astype(np.float32)))


def _rounded(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """16 bits to the nearest of 8."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _of_known_type(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            missing = int(array.size - np.isfinite(array).sum())
            raise CorruptImageError(f"{missing} of its {array.size} values are not finite; fill them first")
        kept = array.astype(np.float16 if array.dtype.itemsize == 2 else np.float32)
        if not np.isfinite(kept).all():
            raise CorruptImageError("some of its values are too large for float32; scale them first")
        return kept
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(f"uint{8 * array.dtype.itemsize}")  # in this machine's order of bytes
    if max(abs(int(array.min())), abs(int(array.max()))) > LARGEST_EXACT:
        raise CorruptImageError(
            f"its values go from {array.min()} to {array.max()}, and whole numbers beyond {LARGEST_EXACT:,} are not "
            "kept exactly; scale them first"
        )
    return array.astype(np.float32)


def _content_of(encoded: Any, folder: Path) -> bytes:
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
    return bytes(content)


def _of_bytes(content: bytes, eight_bits: bool) -> Decoded:
    if is_tiff(content):
        deep = deep_tiff(content)  # None for one that PIL knows to read
        if deep is not None:
            return of_array(*deep, eight_bits=eight_bits)
    image: Image.Image = Image.open(BytesIO(content))
    # The further pictures in a camera's JPEG (MPO) and the layers of a PSD belong to the first one.
    if image.format not in ("MPO", "PSD") and (frames := getattr(image, "n_frames", 1)) > 1:
        raise CorruptImageError(f"it holds {frames} frames; save the one that is meant as an image of its own")
    tiles = getattr(image, "tile", None) or [(0, 0, 0, "")]
    is_deep_colour = ";16" in str(tiles[0][3]) and image.mode in GREY_MODES + COLOUR_MODES
    if is_deep_colour and not eight_bits:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if image.format != "PNG":
            raise CorruptImageError(
                f"it is a {image.format} of 16 bits in colour, of which only 8 can be read; save it as PNG or TIFF, or "
                "give data.dtype uint8"
            )
        return of_array(*(upright(part, orientation) for part in deep_png(content)))
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return of_array(np.asarray(image).astype(np.uint16), eight_bits=eight_bits)
    if image.mode == "F":
        return of_array(np.asarray(image))
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise CorruptImageError(
            f"it has the PIL mode {image.mode!r}, whose range of values is not known; save it as grey or RGB of 8 or "
            "16 bits"
        )
    return _with_opacity(image, is_deep_colour)


def _with_opacity(image: Image.Image, is_rounded: bool) -> Decoded:
    if not image.has_transparency_data:
        return Decoded((image,), is_rounded=is_rounded)
    clear = image.convert("RGBA")
    return Decoded((image,), opacity=clear.getchannel("A"), is_rounded=is_rounded)


def _values_of(values: list[Any]) -> npt.NDArray[np.uint8]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise CorruptImageError("its rows have unequal lengths") from error
    if array.size == 0 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise CorruptImageError(
            f"it is an array of {array.dtype} of shape {array.shape}; expected whole numbers of 0 to 255, (height, "
            "width) or (height, width, channels)"
        )
    return array.astype(np.uint8)
