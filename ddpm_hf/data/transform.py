"""What is done to each image of a data set, so that all have one form: opacity, channels, crop, size."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from ddpm_hf.data.decoding import GREY_MODES, Decoded
from ddpm_hf.data.faults import MisfitError
from ddpm_hf.data.settings import Alpha, size_of
from ddpm_hf.pixels import LARGEST

Planes = tuple[Image.Image, ...]


@dataclass(frozen=True)
class Transform:
    """What is done to each image, in this order.

    Args:
        channels: Number of channels, opacity included where it is one; None for what the first image has. Grey and RGB
            become each other.
        center_crop: True cuts out the largest centred part of the shape of `resolution` (a square without one), an
            integer the centred square of that side, False nothing; None is True where there is a resolution.
        resolution: Height and width that the image is resized to, or the side of a square; None keeps its size.
        resize_filter: One of PIL's, such as "lanczos".
        shape: ``(C, H, W)`` of the first image's result, which all others must have; None before the first.
        alpha: What becomes of transparency: laid on `background`, kept as the last channel, or forgotten.
        background: Name or #rrggbb of a colour.
        dtype: "uint8" or "uint16", which images of the other one become; None keeps the type of the first image.
        first_dtype: Type of the first image's result; None before the first.
    """

    channels: int | None = None
    center_crop: bool | int | None = None
    resolution: int | tuple[int, int] | None = None
    resize_filter: str = "lanczos"
    shape: tuple[int, ...] | None = None
    alpha: Alpha = "composite"
    background: str = "white"
    dtype: str | None = None
    first_dtype: str | None = field(default=None, repr=False)

    def key(self) -> dict[str, Any]:
        """All that the values depend on; settings of later versions are left out where they change nothing."""
        later = {"alpha": "composite", "background": "white", "dtype": None, "first_dtype": None}
        plain = {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}
        return plain | {"center_crop": self.center_crop or False}

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the results, as far as the settings say."""
        return size_of(self.resolution)

    def __call__(self, image: Decoded) -> npt.NDArray[Any]:
        """The image as ``(C, H, W)``.

        Raises:
            MisfitError: the image does not go with the settings or with the first one.
        """
        dtype = self._dtype_of(image)
        planes = [self._resize(self._crop(plane)) for plane in self._coloured(image, self._opaque(image))]
        pixels = _array_of(planes, image.dtype, dtype)
        if self.shape not in (None, pixels.shape):
            raise MisfitError(
                f"has height and width {pixels.shape[1:]} and the first one {self.shape[1:]}",
                "give data.resolution (and data.center_crop true, where some are not square) to bring them to one size",
            )
        return pixels

    def _dtype_of(self, image: Decoded) -> str:
        dtype = self.dtype if self.dtype and image.dtype in LARGEST else image.dtype
        if dtype != (self.dtype or self.first_dtype or dtype):
            other = f"data.dtype is {self.dtype}" if self.dtype else f"the first one {self.first_dtype}"
            is_deep = {dtype, self.dtype or self.first_dtype} <= LARGEST.keys()
            remedy = "give data.dtype uint8 or uint16" if is_deep else "only 8 and 16 bits become each other"
            raise MisfitError(f"has values of the type {dtype}, and {other}", remedy)
        return dtype

    def _opaque(self, image: Decoded) -> Planes:
        """The colours as they are to be seen; the opacity is no channel yet."""
        opacity = image.opacity
        if opacity is None or self.alpha != "composite" or image.is_opaque:
            return image.planes
        if image.dtype == "uint8" and len(image.planes) == 1:
            mode = "L" if image.planes[0].mode in GREY_MODES else "RGB"
            ground = Image.new(mode, image.size, ImageColor.getcolor(self.background, mode))
            return (Image.composite(image.planes[0].convert(mode), ground, opacity),)
        grounds = _background(self.background, len(image.planes))
        share = np.asarray(opacity, dtype=np.float64) / image.full
        mixed = [
            np.asarray(plane) * share + ground * image.full * (1 - share)
            for plane, ground in zip(image.planes, grounds, strict=True)
        ]
        if image.dtype in LARGEST:
            mixed = [values.round() for values in mixed]
        kind = np.uint8 if image.dtype == "uint8" else np.float32
        return tuple(Image.fromarray(values.astype(kind)) for values in mixed)

    def _coloured(self, image: Decoded, planes: Planes) -> Planes:
        """Planes with the wanted number of channels."""
        wanted = self.channels or (self.shape[0] if self.shape else None)
        is_channel = self.alpha == "channel" and (image.opacity is not None if wanted is None else wanted in (2, 4))
        colours = None if wanted is None else wanted - is_channel
        planes = self._grey_or_colour(planes, colours)
        if not is_channel:
            if self.alpha == "channel" and not image.is_opaque:
                raise MisfitError(
                    "is transparent in places, and there is no channel for it",
                    "give data.channels 4 (2 for grey), or data.alpha composite",
                )
            return planes
        opacity = image.opacity
        if opacity is None:
            opacity = Image.new("L" if image.dtype == "uint8" else "F", image.size, image.full)
        return (*planes, opacity)

    def _grey_or_colour(self, planes: Planes, wanted: int | None) -> Planes:
        if len(planes) == 1 and planes[0].mode != "F":
            is_grey = planes[0].mode in GREY_MODES
            wanted = wanted or (1 if is_grey else 3)
            if wanted == 1 and not is_grey and self.channels is None:
                raise MisfitError("is in colour and the first one is grey", "give data.channels 1 or 3")
            if wanted in (1, 3):
                return (planes[0].convert("L" if wanted == 1 else "RGB"),)
            has = 1 if is_grey else 3
        else:
            has = len(planes)
            if wanted in (None, has):
                return planes
            if has == 1 and wanted == 3:
                return planes * 3
            if (has, wanted) == (3, 1):
                if self.channels is None:
                    raise MisfitError("is in colour and the first one is grey", "give data.channels 1 or 3")
                red, green, blue = (np.asarray(plane, dtype=np.float64) for plane in planes)
                luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601-2, as PIL has it for 8 bits
                return (Image.fromarray(luma.astype(np.float32)),)
        if self.channels is None:
            raise MisfitError(f"has {has} channels and the first one {wanted}", "take it out, or bring all to one form")
        raise MisfitError(
            f"has {has} channels, and data.channels is {self.channels}",
            f"give null to keep the {has}" + (", or data.alpha channel where opacity is one" if wanted else ""),
        )

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.center_crop is True or (self.center_crop is None and self.size is not None):
            rows, columns = self.size or (1, 1)
            # The largest part of that shape, in whole pixels.
            cut = (width, round(width * rows / columns)) if width * rows <= height * columns else None
            new_width, new_height = cut or (round(height * columns / rows), height)
            new_width, new_height = max(1, new_width), max(1, new_height)
        elif self.center_crop:
            new_width = new_height = int(self.center_crop)
            if new_width > min(width, height):
                raise MisfitError(
                    f"has height and width {(height, width)}, too small for data.center_crop {self.center_crop}",
                    f"give at most {min(width, height)}, or true for the largest part",
                )
        else:
            return image
        if (new_width, new_height) == (width, height):
            return image
        left, top = (width - new_width) // 2, (height - new_height) // 2
        return image.crop((left, top, left + new_width, top + new_height))

    def _resize(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        height, width = self.size
        is_cut = self.center_crop is True or self.center_crop is None  # to within a pixel
        if not is_cut and image.width * height != image.height * width:
            raise MisfitError(
                f"has height and width {(image.height, image.width)}, and data.resolution "
                f"{shown_size(self.resolution)} would distort it",
                "give data.center_crop true as well",
            )
        return image.resize((width, height), Image.Resampling[self.resize_filter.upper()])


def shown_size(resolution: int | tuple[int, int] | None) -> str:
    """A side, or [height, width], as it is given on the command line."""
    return f"[{resolution[0]},{resolution[1]}]" if isinstance(resolution, tuple) else str(resolution)


def _background(name: str, channels: int) -> list[float]:
    """The colour in [0, 1]; its brightness where there are not three channels."""
    if channels == 3:
        return [value / 255 for value in ImageColor.getrgb(name)[:3]]
    grey = ImageColor.getcolor(name, "L")
    return [(grey if isinstance(grey, int) else grey[0]) / 255] * channels


def _array_of(planes: list[Image.Image], dtype: str, wanted: str) -> npt.NDArray[Any]:
    """``(C, H, W)``."""
    if len(planes) == 1 and dtype == wanted == "uint8":
        pixels = np.asarray(planes[0])
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    arrays = [np.asarray(plane) for plane in planes]
    values = np.stack([part for array in arrays for part in ([array] if array.ndim == 2 else array.transpose(2, 0, 1))])
    if dtype in LARGEST:  # filters overshoot
        values = values.round().clip(0, LARGEST[dtype]) if values.dtype.kind == "f" else values
        if dtype == "uint8" and wanted == "uint16":
            values = values.astype(np.uint16) * 257
    return np.ascontiguousarray(values.astype(wanted))
