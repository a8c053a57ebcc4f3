"""Arrays of numbers as images: which axis is which, and the files of numpy that hold them.

A file is never unpickled.
"""

import io
import math
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil

from ddpm_hf.data.archives import Stretch, Zip, stream_of
from ddpm_hf.data.faults import CorruptImageError, MisfitError
from ddpm_hf.data.folders import shown
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.pixels import LARGEST, TORCH

Array = npt.NDArray[Any]
Layout = Literal["HW", "HWC", "CHW"]
Whole = Literal["uint8", "uint16", "float32"]

ENDINGS = (".npy", ".npz")


def layout_of(shape: tuple[int, ...], layout: Layout | None = None) -> Layout:
    """The axes of one image of two or three.

    Three are (H, W, C) where the last is 1, 3, or smaller than both others, and else (C, H, W) where the first is.

    Args:
        shape: Sizes of the axes.
        layout: What they are; None for the rule.

    Raises:
        ValueError: none of this says it; the message is what is wrong.
    """
    if layout is not None and len(layout) == len(shape):
        return layout
    if len(shape) == 2 and layout is None:
        return "HW"
    if len(shape) != 3 or layout is not None:
        expected = f"{layout}, as data.layout says" if layout else "(H, W), (H, W, C) or (C, H, W)"
        raise ValueError(f"has the shape {shape}, which is not {expected}")
    first, middle, last = shape
    if last in (1, 3) or last < min(first, middle):
        return "HWC"
    if first in (1, 3) or first < min(middle, last):
        return "CHW"
    raise ValueError(
        f"has the shape {shape}, whose channels may be the first axis or the last; give data.layout HWC or CHW"
    )


def layout_of_stack(shape: tuple[int, ...], layout: Layout | None = None) -> Layout:
    """The axes of each image of an array (N, ...) of them. Arguments and errors as of `layout_of`."""
    if len(shape) not in (3, 4) or (layout is not None and len(layout) + 1 != len(shape)):
        expected = f"(N, {', '.join(layout)})" if layout else "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise ValueError(f"has the shape {shape}, and images have {expected}")
    try:
        return layout_of(shape[1:], layout)
    except ValueError as error:
        raise ValueError(str(error).replace(str(shape[1:]), f"(N, {str(shape[1:])[1:]}")) from error


def layout_in_folder(shape: tuple[int, ...], layout: Layout | None = None) -> tuple[Layout, bool]:
    """The axes of an image in a file among others, and whether the file holds a stack (N, ...) of them.

    Three axes may be those of one image with channels or of a stack without. They are (H, W, C) where the last is at
    most 4 and smaller than the others, (C, H, W) where the first is 1, and (N, H, W) where the first is the largest
    and the last no smaller than the middle one.

    Raises:
        ValueError: as `layout_of`.
    """
    if layout is not None:
        is_stack = len(shape) == len(layout) + 1
        return (layout_of_stack(shape, layout) if is_stack else layout_of(shape, layout)), is_stack
    if len(shape) == 4:
        return layout_of_stack(shape), True
    if len(shape) != 3:
        return layout_of(shape), False
    first, middle, last = shape
    if last <= 4 and last < min(first, middle):
        return "HWC", False
    if first == 1:
        return "CHW", False
    if first > last >= middle:
        return "HW", True
    raise ValueError(
        f"has the shape {shape}, which may be several images (N, H, W) or one with channels; give data.layout HW, HWC "
        "or CHW, the axes of one image"
    )


def channels_last(image: Array, layout: Layout) -> Array:
    """One image as ``(H, W)`` or ``(H, W, C)``."""
    return image.transpose(1, 2, 0) if layout == "CHW" else image


def whole_type(config: DataConfig) -> Whole:
    """The type of pixels for whole numbers in types that pixels are not kept in, such as int64.

    It follows from the settings alone, so that it is one for all images: floating point where data.value_range says
    what they mean, and else 16 bits where data.dtype says so, and 8.
    """
    if config.value_range is not None:
        return "float32"
    return "uint16" if config.dtype == "uint16" else "uint8"


def typed(image: Array, whole: Whole) -> Array:
    """An image in a type that pixels are kept in, if it holds whole numbers in another one.

    Raises:
        MisfitError: they are beyond it.
    """
    if image.dtype.kind not in "iu" or image.dtype in (np.uint8, np.uint16) or not image.size:
        return image
    low, high = int(image.min()), int(image.max())
    most = {"uint8": LARGEST["uint8"], "uint16": LARGEST["uint16"], "float32": 2**24}[whole]
    if low < (-most if whole == "float32" else 0) or high > most:
        remedy = "data.dtype uint16, or " if whole == "uint8" and low >= 0 and high <= LARGEST["uint16"] else ""
        raise MisfitError(
            f"holds {image.dtype} numbers from {low} to {high}, and 0 to {most} are taken for {whole}"
            if whole != "float32"
            else f"holds {image.dtype} numbers from {low} to {high}, which float32 does not hold",
            f"give {remedy}data.value_range [low, high]" if whole != "float32" else "scale them first",
        )
    return image.astype(whole)


def channels_first(images: Array, layout: Layout | None = None) -> Array:
    """An array (N, ...) of images as ``(N, C, H, W)``, of a type that pixels are kept in.

    Args:
        images: ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` of numbers.
        layout: As in `layout_of`.

    Raises:
        ValueError: it is no such array; the message lacks its subject.
    """
    axes = layout_of_stack(images.shape, layout)
    if images.dtype.kind not in "buif" or not images.size:
        raise ValueError(f"is {images.dtype} of shape {images.shape}, and must be numbers, and some")
    if images.dtype.kind == "b":
        images = images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind in "iu" and images.dtype.name not in TORCH and images.min() >= 0:
        fitting = [name for name, most in LARGEST.items() if images.max() <= most]
        images = images.astype(fitting[0]) if fitting else images
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise ValueError("holds values that are not finite; fill them first")
    if images.dtype.name not in TORCH:
        exact = images.astype(np.float32)
        if images.dtype.kind != "f" and not np.array_equal(exact, images):
            raise ValueError(f"holds {images.dtype} values that float32 does not hold; scale them first")
        images = exact
    moved = images[:, None] if axes == "HW" else images.transpose(0, 3, 1, 2) if axes == "HWC" else images
    return np.ascontiguousarray(moved, moved.dtype.newbyteorder("="))


def array_of(values: Any, dtype: str, config: DataConfig) -> Array:
    """Nested lists, as datasets gives arrays and sequences, as one image ``(H, W)`` or ``(H, W, C)``.

    Args:
        values: The lists.
        dtype: Type that the column declares.
        config: For ``layout`` and `whole_type`.

    Raises:
        CorruptImageError: they are no image.
        MisfitError: as `typed`.
    """
    if values is None:
        raise CorruptImageError("the row holds no image")
    try:
        array = np.asarray(values, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptImageError("its rows have unequal lengths, or hold other things than numbers") from error
    try:
        layout = layout_of(array.shape, config.layout)
    except ValueError as error:
        raise CorruptImageError(f"it {error}") from error
    return channels_last(typed(array, whole_type(config)), layout)


@dataclass(frozen=True)
class Head:
    """What an array in a file is.

    Args:
        name: In an .npz; empty for an .npy.
        shape: Sizes of the axes.
        dtype: Type of the values, as numpy writes it.
        fortran: Whether the first axis changes fastest.
        offset: Where the values begin in the file; None where they are compressed, or in an archive that is.
        labels: The values, of a vector of integers or one integer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fortran: bool
    offset: int | None
    labels: list[int] | None = None

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Head":
        """As `heads_of` gave it, from lists."""
        return cls(**{**found, "shape": tuple(found["shape"])})

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def may_be_images(self) -> bool:
        """Whether it holds numbers in two axes or more."""
        return len(self.shape) >= 2 and self.labels is None and np.dtype(self.dtype).kind in "buif"


def heads_of(path: str, content: bytes | Stretch) -> list[dict[str, Any]]:
    """What the arrays of an .npy or .npz are, in the types of JSON.

    Args:
        path: For the ending, and for messages.
        content: The file's bytes, or where they lie.

    Raises:
        ValueError: it is damaged, or holds objects.
    """
    try:
        if path.lower().endswith(".npy"):
            return [_head(path, "", content)]
        if isinstance(content, Stretch) and content.offset == 0:  # a file of its own
            own = Zip(content.path)
            for name in own.names:
                own.verify(name)
            return [_head(path, name, own.stretch(name) or own.read(name)) for name in own.names]
        with zipfile.ZipFile(stream_of(content)) as file:
            return [_head(path, name, file.read(name)) for name in file.namelist()]
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, CorruptImageError, RuntimeError) as error:
        raise ValueError(f"{shown(path)} is no whole .npz file ({error}); fetch it again, or make it again") from error


def _head(path: str, name: str, content: bytes | Stretch) -> dict[str, Any]:
    subject = shown(path) + (f" ({shown(name)})" if name else "")
    base: int | None
    if isinstance(content, Stretch):
        start, size, base = content.read(0, 65536), content.size, content.offset
    else:
        start, size, base = content[:65536], len(content), None
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # numpy reads the header as Python, which raises almost anything
        raise ValueError(f"{subject} is no array of numpy ({' '.join(str(error).split())})") from error
    if dtype.hasobject:
        raise ValueError(f"{subject} holds Python objects, which are not read, as they may run code; save numbers")
    begins = file.tell()
    offset = None if base is None else base + begins
    head = Head(name.removesuffix(".npy"), shape, dtype.str, fortran, offset)
    if size < begins + head.size:
        raise ValueError(
            f"{subject} is cut off: its shape {shape} takes {head.size:,} bytes and it holds {size - begins:,}; fetch "
            "it again"
        )
    is_vector = len(shape) < 2 or (len(shape) == 2 and shape[1] == 1)
    if is_vector and dtype.kind in "iu":
        values = np.load(stream_of(content), allow_pickle=False).ravel()
        head = replace(head, labels=values.tolist())
    return asdict(head)


_MOST_HELD = 4
_RECENT: "deque[ArrayFile]" = deque()
"""Arrays that are in memory."""


class ArrayFile:
    """One array of a file, read where it lies, or once where it is compressed.

    Args:
        head: What it is.
        path: For messages and the ending.
        content: The whole file: where it lies, or a function that reads it.
    """

    def __init__(self, head: Head, path: str, content: Stretch | Callable[[], bytes]) -> None:
        self.head, self._path, self._content = head, path, content
        self._lock, self._held = Lock(), dict[str, Array]()
        free = psutil.virtual_memory().available
        if head.offset is None and head.size > free:
            raise ValueError(
                f"the array {head.name!r} of {shown(path)} takes {head.size / 2**30:,.1f} GiB unpacked, and "
                f"{free / 2**30:,.1f} GiB of memory are free; save it with numpy.save or numpy.savez, which compress "
                "nothing, so that it is read where it lies"
            )

    def values(self) -> Array:
        """The array, mapped from its file if it can be.

        Raises:
            CorruptImageError: it is damaged.
            OSError: the file cannot be read.
        """
        head = self.head
        if isinstance(self._content, Stretch) and head.offset is not None:
            order: Literal["F", "C"] = "F" if head.fortran else "C"
            return np.memmap(self._content.path, head.dtype, "r", head.offset, head.shape, order)
        try:
            content = stream_of(self._content if isinstance(self._content, Stretch) else self._content())
            found = np.load(content, allow_pickle=False)
            return np.asarray(found[head.name] if isinstance(found, np.lib.npyio.NpzFile) else found)
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise CorruptImageError(f"{shown(self._path)} is damaged: {error}") from error

    def held(self) -> Array:
        """As `values`, but kept, for a stack from which many images are taken. Of those in memory the last few are."""
        with self._lock:
            found = self._held.get("array")
            if found is None:
                found = self._held["array"] = self.values()
                if not isinstance(found, np.memmap):
                    _RECENT.append(self)
        while len(_RECENT) > _MOST_HELD:
            _RECENT.popleft()._held.clear()
        return found


class Stack:
    """Images of one array, by their number.

    Args:
        file: The array.
        layout: Axes of one image.
        is_stack: Whether there is an axis before these.
        whole: As in `typed`.
    """

    def __init__(self, file: ArrayFile, layout: Layout, is_stack: bool, whole: Whole) -> None:
        self._file, self._layout, self._is_stack, self._whole = file, layout, is_stack, whole

    def __len__(self) -> int:
        return self._file.head.shape[0]

    def read(self, index: str) -> Array:
        """The image of that number, or the only one, ``(H, W)`` or ``(H, W, C)``.

        Raises:
            CorruptImageError: the file is damaged.
            MisfitError: as `typed`.
            OSError: the file cannot be read.
        """
        array = self._file.held()[int(index)] if self._is_stack else self._file.values()
        return channels_last(typed(np.asarray(array), self._whole), self._layout)
