"""TIFF and PNG that PIL has no picture for: 16 bits in colour, floating point, other numbers of channels."""

from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm_hf.data.faults import CorruptImageError

Array = npt.NDArray[Any]


MISSING = "that needs the package imagecodecs, which is not installed: pip install 'ddpm-hf[deep]'"


def is_tiff(content: bytes) -> bool:
    """Whether a file begins as TIFF and BigTIFF do."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def deep_tiff(content: bytes) -> tuple[Array, Array | None] | None:
    """Values ``(H, W, C)`` and opacity ``(H, W)`` of a TIFF, upright; None for one of 8 bits that PIL reads rightly.

    Raises:
        CorruptImageError: it has several pages, or is compressed in a way that needs another package.
    """
    import tifffile  # here, since most data sets hold none

    with tifffile.TiffFile(BytesIO(content)) as file:
        page = file.pages.first
        kinds = [int(kind) for kind in page.extrasamples or ()]
        base = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}.get(int(page.photometric), page.samplesperpixel)
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        has_pils_form = page.samplesperpixel == base + len(kinds) and kinds in ([], [1], [2])
        if has_pils_form and bits <= 8 and page.sampleformat == 1 and not content.startswith(b"MM\0+"):
            return None
        if len(file.pages) > 1:
            raise CorruptImageError(
                f"it holds {len(file.pages)} frames; save the one that is meant as an image of its own"
            )
        _check_size(page.imagewidth * page.imagelength)
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise CorruptImageError(
                    f"it is a TIFF compressed as {tifffile.COMPRESSION(page.compression).name}, and {MISSING}"
                ) from error
            raise
        values = np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            values = np.iinfo(values.dtype).max - values
        orientation = page.tags.get("Orientation")
        colours, opacity = _apart(values, kinds)
        turn = int(orientation.value) if orientation else 1
        return upright(colours, turn), None if opacity is None else upright(opacity, turn)


def _apart(values: Array, kinds: list[int]) -> tuple[Array, Array | None]:
    """The colours and the opacity, where an extra channel is one: the kind 1 is already multiplied in, 2 is not."""
    extra = [place for place, kind in enumerate(kinds, -len(kinds)) if kind in (1, 2)]
    if len(extra) != 1:
        return values, None
    opacity = values[..., extra[0]]
    colours = np.delete(values, extra[0], axis=-1)
    if kinds[extra[0]] == 1:
        largest = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
        share = np.maximum(opacity, 1 if largest > 1 else 1e-6)[..., None] / largest
        whole = colours / share
        colours = (whole.clip(0, largest).round() if largest > 1 else whole).astype(values.dtype)
    return colours, opacity


def deep_png(content: bytes) -> tuple[Array, Array | None]:
    """Values ``(H, W, C)`` and opacity ``(H, W)`` of a PNG of 16 bits in colour, not yet upright.

    Raises:
        CorruptImageError: it is damaged, or imagecodecs is not installed.
    """
    if find_spec("imagecodecs") is None:
        raise CorruptImageError(f"it is a PNG of 16 bits in colour, and {MISSING} (or give data.dtype uint8)")
    import imagecodecs

    with Image.open(BytesIO(content)) as image:
        image.load()  # PIL sees what is damaged or cut off; imagecodecs fills it with anything
    values = np.asarray(imagecodecs.png_decode(content))
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[-1] in (2, 4):
        return values[..., :-1], values[..., -1]
    return values, None


def upright(values: Array | None, orientation: int) -> Any:
    """``(H, W, ...)`` turned as the number of EXIF and TIFF says; others leave it as it is."""
    if values is None or orientation not in range(2, 9):
        return values
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    up = orientation in (3, 4, 7, 8)
    left = orientation in (2, 3, 6, 7)
    return values[:: -1 if up else 1, :: -1 if left else 1]


def _check_size(pixels: int) -> None:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or pixels)
    if pixels > limit:
        raise CorruptImageError(f"it has too many pixels; resize it first ({pixels:,}, and {limit:,} is the most)")
