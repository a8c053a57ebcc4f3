"""Images decoded and brought to one form once, then kept on disk as plain bytes that all processes share.

    <folder>/<data set>-<key>/
        images.bin      uint8 (N, C, H, W), the images one after the other
        labels.npy      int64 (N,), where there are labels; -1 where a row has none
        info.json       the shape, where the images come from, what was done to them, and the rows left out

The key stands for the data set, its columns and the transform. One process builds the folder under a lock and a
temporary name, and renames it when it is complete and on the disk; all others wait for the lock, then map the file.
A process that dies lets go of its lock, and the next one starts over.
"""

import hashlib
import json
import logging
import os
import re
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
import PIL
import torch
from datasets.utils.file_utils import xopen
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_hf.files import sync, sync_tree, temporary_name, written_whole

# To be raised with every change of the files or of what a transform does.
FORMAT = 1
# Rows that a thread takes at a time, so that handing them over costs little beside decoding the smallest images.
CHUNK = 16
WORKERS = min(16, os.cpu_count() or 1)
# Corrupt images that a message names.
NAMED = 5

OnCorrupt = Literal["error", "skip"]
# The image of a row, or where it is and what is wrong with it; and the label.
ReadRow = tuple[npt.NDArray[np.uint8] | str, int]

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class CachedImages:
    """An open cache.

    Args:
        images: uint8 ``(N, C, H, W)``, mapped from the file: all processes that map it share its pages.
        labels: int64 ``(N,)`` with -1 for none; None where the data set has no column of them.
        fingerprint: A hash of the images and labels themselves.
        corrupt: Place and reason for each image left out.
    """

    images: Tensor
    labels: Tensor | None
    fingerprint: str
    corrupt: list[str]


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


def cached_images(
    rows: Rows, source: str, transform: Transform, folder: Path, on_corrupt: OnCorrupt, show_progress: bool = False
) -> CachedImages:
    """The images of a data set from their cache, which is built first where it is missing.

    Args:
        rows: The data set, map-style.
        source: Fingerprint of the data set, a part of the key.
        transform: What is done to each image.
        folder: Where the caches are.
        on_corrupt: Stop when all rows have been seen, or leave these images out.
        show_progress: Show a bar while this or another process builds the cache.

    Raises:
        ValueError: an image does not go with the others or the settings, some are corrupt, or there is no room.
    """
    key = json.dumps([FORMAT, source, rows.image_column, rows.label_column, asdict(transform)])
    stem = re.sub(r"[^\w.-]+", "_", Path(rows.name).stem)[-40:]
    cache = folder / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        if _open(cache) is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _turn(cache, rows, show_progress):
                if _open(cache) is None:  # not there, or cut short
                    with written_whole(cache) as building:
                        _build(rows, transform, building, on_corrupt, show_progress)
                    sync(folder)
    except OSError as error:
        raise ValueError(
            f"the decoded images of {rows.name!r} cannot be kept under {folder}: {error.strerror or error}; make room "
            "there, or give data.cache_dir another folder (or data.streaming true to keep none)"
        ) from error
    found = _open(cache)
    assert found is not None, f"{cache} is gone as soon as it was made"
    _judge(rows, found.corrupt, on_corrupt)
    if found.corrupt:
        logger.warning(_sentence(rows, found.corrupt, f"they are left out (all are named in {cache / 'info.json'})"))
    return found


@contextmanager
def _turn(cache: Path, rows: Rows, show_progress: bool) -> Iterator[None]:
    """Hold the lock of a cache; while another process has it, show how far that one is."""
    lock = FileLock(cache.with_name(f"{cache.name}.lock"))
    try:
        lock.acquire(timeout=0.5 if show_progress else -1)
    except Timeout:
        with _bar(rows, show_progress) as bar:
            while not lock.is_locked:
                # The other process may be about to write the number, or done with it.
                with suppress(FileNotFoundError, ValueError):
                    bar.update(int((temporary_name(cache) / "rows_done").read_text()) - bar.n)
                with suppress(Timeout):
                    lock.acquire(timeout=0.5)
    try:
        yield
    finally:
        lock.release()


def _build(rows: Rows, transform: Transform, building: Path, on_corrupt: OnCorrupt, show_progress: bool) -> None:
    """Make the folder, complete and on the disk."""
    building.mkdir()
    info = _write(rows, transform, building, show_progress)
    _judge(rows, info["corrupt"], on_corrupt)
    (building / "info.json").write_text(json.dumps(info, indent=2) + "\n")
    (building / "rows_done").unlink()
    sync_tree(building)


def _write(rows: Rows, transform: Transform, building: Path, show_progress: bool) -> dict[str, Any]:
    """Decode all rows in order into the folder, a few chunks in memory at a time."""
    settled = settle(rows, transform)
    digest, labels, corrupt = hashlib.sha256(), array("q"), list[str]()
    with (building / "images.bin").open("wb") as file, _bar(rows, show_progress) as bar:
        for chunk in _decoded(rows, settled):
            for pixels, label in chunk:
                if isinstance(pixels, str):
                    corrupt.append(pixels)
                else:
                    file.write(pixels.data)
                    digest.update(pixels.data)
                    labels.append(label)
            bar.update(len(chunk))
            (building / "rows_done").write_text(str(len(labels) + len(corrupt)))
    shape = (len(labels), *(settled.shape or ()))
    if rows.label_column is not None:
        np.save(building / "labels.npy", np.asarray(labels, dtype=np.int64), allow_pickle=False)
        digest.update(labels.tobytes())
    return {
        "name": rows.name,
        "columns": [rows.image_column, rows.label_column],
        "treatment": asdict(transform),
        "pillow": PIL.__version__,
        "shape": shape,
        "fingerprint": hashlib.sha256(f"{shape}{digest.hexdigest()}".encode()).hexdigest()[:32],
        "corrupt": corrupt,
    }


def settle(rows: Rows, transform: Transform) -> Transform:
    """The transform with the shape that the first readable image gives; as it was where there is none."""
    for index, row in enumerate(rows.dataset):
        try:
            return replace(transform, shape=rows.read(row, transform, f"row {index}").shape)
        except CorruptImageError:
            continue
    return transform


def _decoded(rows: Rows, transform: Transform) -> Iterator[list[ReadRow]]:
    """Chunks of rows, in order."""

    def work(first: int, chunk: list[dict[str, Any]]) -> list[ReadRow]:
        results: list[ReadRow] = []
        for index, row in enumerate(chunk, first):
            try:
                results.append((rows.read(row, transform, f"row {index}"), rows.label(row)))
            except CorruptImageError as error:
                results.append((f"{rows.place(row, f'row {index}')}: {error}", -1))
        return results

    with ThreadPoolExecutor(WORKERS) as pool:
        under_way: deque[Future[list[ReadRow]]] = deque()
        for first in range(0, len(rows.dataset), CHUNK):
            columns = rows.dataset[first : first + CHUNK]
            chunk = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            under_way.append(pool.submit(work, first, chunk))
            if len(under_way) > 2 * WORKERS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _open(cache: Path) -> CachedImages | None:
    """None where there is no cache, or one that something has cut short since it was made."""
    try:
        info = json.loads((cache / "info.json").read_text())
        shape, images, labels = info["shape"], cache / "images.bin", cache / "labels.npy"
        size = int(np.prod(shape))
        if images.stat().st_size != size:
            return None
        return CachedImages(
            images=torch.from_file(str(images), shared=False, size=size, dtype=torch.uint8).view(shape),
            labels=torch.from_numpy(np.load(labels, allow_pickle=False)) if info["columns"][1] is not None else None,
            fingerprint=info["fingerprint"],
            corrupt=info["corrupt"],
        )
    except (FileNotFoundError, EOFError, ValueError, KeyError):
        return None


def _judge(rows: Rows, corrupt: list[str], on_corrupt: OnCorrupt) -> None:
    """Raise ValueError where the corrupt images are too many."""
    if len(corrupt) == len(rows.dataset):
        raise ValueError(_sentence(rows, corrupt, f"is data.image_column {rows.image_column!r} the right one?"))
    if corrupt and on_corrupt == "error":
        raise ValueError(_sentence(rows, corrupt, "repair them, or give data.on_corrupt skip to leave them out"))


def _sentence(rows: Rows, corrupt: list[str], then: str) -> str:
    more = f"; and {len(corrupt) - NAMED} more" if len(corrupt) > NAMED else ""
    counted = f"{len(corrupt)} of the {len(rows.dataset)} images of {rows.name!r} cannot be decoded"
    return f"{counted}: {'; '.join(corrupt[:NAMED])}{more}; {then}"


def _bar(rows: Rows, show_progress: bool) -> tqdm:
    return tqdm(total=len(rows.dataset), desc=f"decoding {rows.name}", unit="image", disable=not show_progress)
