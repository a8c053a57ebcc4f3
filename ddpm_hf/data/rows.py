"""A data set in the form that it is read in, row by row."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy.typing as npt

from ddpm_hf.data.decoding import Decoded, decode
from ddpm_hf.data.faults import CorruptImageError, MisfitError
from ddpm_hf.data.folders import shown
from ddpm_hf.data.transform import Transform, shown_size
from ddpm_hf.launch import usable_memory

OnCorrupt = Literal["error", "skip"]

_COUNTING = Lock()


@dataclass
class Seen:
    """What the images were before they were brought to one form, counted while threads read them.

    Args:
        sizes: Height and width, and how many images had them.
        transparent: Images of which some pixel is not opaque.
        rounded: Images of 16 bits, which are rounded to 8.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    transparent: int = 0
    rounded: int = 0

    def add(self, image: Decoded) -> None:
        """Count one more."""
        is_clear = not image.is_opaque
        with _COUNTING:
            self.sizes[image.size[::-1]] += 1
            self.transparent += is_clear
            self.rounded += image.is_rounded

    def clear(self) -> None:
        """Count from nothing."""
        self.sizes, self.transparent, self.rounded = Counter(), 0, 0

    def summary(self) -> dict[str, Any]:
        """In the types of JSON."""
        by_area = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        ends = [list(by_area[0]), list(by_area[-1])] if by_area else []
        return {"sizes": len(by_area), "ends": ends, "transparent": self.transparent, "rounded": self.rounded}


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
        seen: What has been read so far.
        advises: Messages name settings of training.
        fetch: Turns what a row holds into what `decode` takes, as members of an archive; None for the same.
    """

    name: str
    dataset: Any
    image_column: str
    label_column: str | None
    folder: Path = Path()
    classes: tuple[str, ...] | None = None
    seen: Seen = field(default_factory=Seen)
    advises: bool = True
    fetch: Callable[[Any], Any] | None = None

    def read(self, row: dict[str, Any], transform: Transform, where: str) -> npt.NDArray[Any]:
        """The image of ``row``, ``(C, H, W)``; ``where`` is for messages.

        Raises:
            CorruptImageError: it cannot be decoded.
            ValueError: it cannot be read at all, or does not go with the transform.
        """
        subject = f"the image in {self.place(row, where)} of {self.name!r}"
        try:
            encoded = row[self.image_column] if self.fetch is None else self.fetch(row[self.image_column])
            image = decode(encoded, self.folder, transform.dtype == "uint8")
            self.seen.add(image)
            return transform(image)
        except OSError as error:
            raise ValueError(f"{subject} cannot be read: {error}") from error
        except MisfitError as error:
            said = error if self.advises else f"{error.problem}; all must have one size, type and colour"
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


def settle(rows: Rows, transform: Transform) -> Transform:
    """The transform with the shape and type that the first readable image gives; as it was where there is none.

    Raises:
        ValueError: an image of data.resolution does not fit into memory.
    """
    free = usable_memory()
    pixel = 2 * (transform.channels or 1)  # PIL's image and the array
    if transform.size is not None and pixel * math.prod(transform.size) > free:
        raise ValueError(
            f"data.resolution is {shown_size(transform.resolution)}, and an image of that size does not fit into the "
            f"{free / 2**30:.1f} GiB of free memory; give at most {math.isqrt(free // pixel)}"
        )
    for index, row in enumerate(rows.dataset):
        try:
            pixels = rows.read(row, transform, f"row {index}")
        except CorruptImageError:
            continue
        return replace(transform, shape=pixels.shape, first_dtype=pixels.dtype.name)
    return transform
