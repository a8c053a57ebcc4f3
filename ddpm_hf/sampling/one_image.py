"""The file of one generated image: PNG, TIFF or an array, each of which is known to be whole by its content."""

import zipfile
import zlib
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm_hf.pixels import TORCH, PixelFormat

Array = npt.NDArray[Any]
_BEGIN_OF_PNG = b"\x89PNG\r\n\x1a\n"


class FileKind(ABC):
    """How an image, ``(H, W, C)`` of any type, is written to a file of its own and read."""

    name: str
    ending: str
    dtypes: tuple[str, ...] = tuple(TORCH)

    @abstractmethod
    def write(self, path: Path, image: Array) -> None:
        """Write it under a name that may end in anything."""

    @abstractmethod
    def read(self, path: Path) -> Array:
        """The image, ``(H, W, C)``."""

    @abstractmethod
    def is_whole(self, path: Path) -> bool:
        """Whether it is there to its last bytes, with the right checksums."""

    def check(self, pixels: PixelFormat, channels: int) -> None:
        """See that such files hold images of this type and number of channels.

        Raises:
            ValueError: they do not.
        """
        if not (pixels.dtype in self.dtypes and self._takes(channels, pixels.alpha)):
            raise ValueError(
                f"{self.name} files do not hold images of {channels} channels of the type {pixels.dtype}; give "
                "--format tiff, npy or npz"
            )

    def _takes(self, channels: int, has_opacity: bool) -> bool:
        return True


class PNG(FileKind):
    """8 or 16 bits, grey or RGB, perhaps with opacity."""

    name, ending, dtypes = "PNG", ".png", ("uint8", "uint16")

    def write(self, path: Path, image: Array) -> None:
        """See above; 16 bits in colour need imagecodecs."""
        if image.dtype == np.uint16 and image.shape[2] > 1:
            import imagecodecs

            path.write_bytes(imagecodecs.png_encode(image))
            return
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path, format="PNG")

    def read(self, path: Path) -> Array:
        """See above."""
        with Image.open(path) as file:
            values = np.asarray(file)
            is_deep_colour = ";16" in str(file.tile[:1]) and values.ndim == 3
        if is_deep_colour:
            import imagecodecs

            values = np.asarray(imagecodecs.png_decode(path.read_bytes()))
        return values[..., None] if values.ndim == 2 else values

    def is_whole(self, path: Path) -> bool:
        """See above."""
        try:
            content = path.read_bytes()
        except OSError:
            return False
        position = len(_BEGIN_OF_PNG)
        while content.startswith(_BEGIN_OF_PNG) and position + 12 <= len(content):
            length = int.from_bytes(content[position : position + 4])
            kind_and_data = content[position + 4 : position + 8 + length]
            checksum = content[position + 8 + length : position + 12 + length]
            if checksum != zlib.crc32(kind_and_data).to_bytes(4):
                return False
            position += 12 + length
            if kind_and_data == b"IEND":
                return position == len(content)
        return False

    def check(self, pixels: PixelFormat, channels: int) -> None:
        """See above."""
        super().check(pixels, channels)
        if pixels.dtype == "uint16" and channels > 1 and find_spec("imagecodecs") is None:
            raise ValueError(
                "PNG of 16 bits in colour needs the package imagecodecs, which is not installed: pip install "
                "'ddpm-hf[deep]'; or give --format tiff, npy or npz"
            )

    def _takes(self, channels: int, has_opacity: bool) -> bool:
        return channels in ((2, 4) if has_opacity else (1, 3))


class TIFF(FileKind):
    """Any type and number of channels; compressed by deflate, whose checksum shows what is damaged."""

    name, ending = "TIFF", ".tif"

    def write(self, path: Path, image: Array) -> None:
        """See above."""
        import tifffile  # here, as most models make pictures of 8 bits

        is_rgb = image.shape[2] in (3, 4) and image.dtype.kind == "u"
        values = image[..., 0] if image.shape[2] == 1 else image
        with path.open("wb") as file:
            tifffile.imwrite(
                file,
                values,
                photometric="rgb" if is_rgb else "minisblack",
                planarconfig=None if values.ndim == 2 else "contig",
                compression="zlib",
                metadata=None,
            )

    def read(self, path: Path) -> Array:
        """See above."""
        import tifffile

        values: Array = np.asarray(tifffile.imread(path))
        return values[..., None] if values.ndim == 2 else values

    def is_whole(self, path: Path) -> bool:
        """See above."""
        try:
            return bool(self.read(path).size)
        except Exception:  # it may hold anything
            return False


class Part(FileKind):
    """An array in a zip file, which has checksums; for images on their way into one large file."""

    name, ending = "npz", ".npz"

    def write(self, path: Path, image: Array) -> None:
        """See above."""
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, image=image)

    def read(self, path: Path) -> Array:
        """See above."""
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["image"])

    def is_whole(self, path: Path) -> bool:
        """See above."""
        try:
            return bool(self.read(path).size)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return False


KINDS: dict[str, FileKind] = {"png": PNG(), "tiff": TIFF()}


def kind_for_parts(pixels: PixelFormat, channels: int) -> FileKind:
    """PNG where it holds such images with nothing else installed (as earlier versions left them), else arrays."""
    return KINDS["png"] if pixels.dtype == "uint8" and channels in (1, 3) else Part()
