"""Images decoded and brought to one form once, then kept on disk as plain bytes that all processes share.

    <folder>/<data set>-<key>/
        images.bin      (N, C, H, W) of the images' own type, one after the other
        labels.npy      int64 (N,), where there are labels; -1 where a row has none
        info.json       shape and type, where the images come from, what was done to them, the rows left out, and hashes

The key stands for the data set, its columns and the transform. One process builds the folder under a lock and a
temporary name, and renames it when it is complete and on the disk; all others wait for the lock, then map the file.
A process that dies lets go of its lock, and the next one starts over.
"""

import hashlib
import json
import logging
import math
import re
import shutil
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ddpm_hf.data.decoding import WORKERS
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.data.rows import OnCorrupt, Rows, settle
from ddpm_hf.data.transform import Transform
from ddpm_hf.files import hash_of, is_intact, is_temporary, sealed, sync, sync_tree, temporary_name, written_whole
from ddpm_hf.pixels import TORCH
from ddpm_hf.progress import Progress

# To be raised with every change of the files or of what a transform does.
FORMAT = 2
# Rows that a thread takes at a time, so that handing them over costs little beside decoding the smallest images.
CHUNK = 16
# Corrupt images that a message names.
NAMED = 5

# The image of a row, or where it is and what is wrong with it; and the label.
ReadRow = tuple[npt.NDArray[Any] | str, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImages:
    """An open cache.

    Args:
        images: ``(N, C, H, W)`` of their own type, mapped from the file: all processes that map it share its pages.
        labels: int64 ``(N,)`` with -1 for none; None where the data set has no column of them.
        fingerprint: A hash of the images and labels themselves.
        corrupt: Place and reason for each image left out.
        seen: What the images were before (`ddpm_hf.data.rows.Seen.summary`).
        folder: Where the cache is.
    """

    images: Tensor
    labels: Tensor | None
    fingerprint: str
    corrupt: list[str]
    seen: dict[str, Any]
    folder: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.images.shape[1:])


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
        show_progress: Tell how far it is while this or another process builds the cache.

    Raises:
        ValueError: an image does not go with the others or the settings, some are corrupt, or there is no room.
    """
    key = json.dumps([FORMAT, source, rows.image_column, rows.label_column, transform.key()])
    stem = re.sub(r"[^\w.-]+", "_", Path(rows.name).stem)[-40:]
    cache = folder / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        found = _open(cache)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _turn(cache, rows, show_progress):
                found = _open(cache)
                if found is None:
                    if cache.exists():
                        logger.warning("the cache %s is damaged or of an earlier version; it is made again", cache)
                    _remove_left_behind(folder)
                    with written_whole(cache) as building:
                        _build(rows, transform, building, on_corrupt, show_progress)
                    sync(folder)
                    found = _open(cache)
    except OSError as error:
        raise ValueError(
            f"the decoded images of {rows.name!r} cannot be kept under {folder}: {error.strerror or error}; make room "
            "there, or give data.cache_dir another folder (or data.streaming true to keep none)"
        ) from error
    assert found is not None, f"{cache} is gone as soon as it was made"
    _judge(rows, found.corrupt, on_corrupt)
    if found.corrupt:
        logger.warning(sentence_of(rows, found.corrupt, f"they are left out (all are named in {cache / 'info.json'})"))
    return found


@contextmanager
def _turn(cache: Path, rows: Rows, show_progress: bool) -> Iterator[None]:
    """Hold the lock of a cache; while another process has it, show how far that one is."""
    lock = FileLock(cache.with_name(f"{cache.name}.lock"))
    try:
        lock.acquire(timeout=0.5 if show_progress else -1)
    except Timeout:
        with _told(rows, show_progress) as told:
            while not lock.is_locked:
                # The other process may not have begun, or be done.
                with suppress(FileNotFoundError):
                    told.advance(int((temporary_name(cache) / "rows_done").read_text()) - told.done)
                with suppress(Timeout):
                    lock.acquire(timeout=0.5)
    try:
        yield
    finally:
        lock.release()


def _remove_left_behind(folder: Path) -> None:
    """Remove caches, whichever they are, that processes were building or removing when they were killed."""
    for path in folder.glob(".*"):
        if is_temporary(Path(path.name)):
            lock = FileLock(folder / f"{Path(path.name[1:]).stem}.lock")
            with suppress(Timeout), lock.acquire(timeout=0):  # whoever still builds it holds its lock
                shutil.rmtree(path, ignore_errors=True)


def _build(rows: Rows, transform: Transform, building: Path, on_corrupt: OnCorrupt, show_progress: bool) -> None:
    """Make the folder, complete and on the disk."""
    building.mkdir()
    info = _write(rows, transform, building, show_progress)
    _judge(rows, info["corrupt"], on_corrupt)
    (building / "rows_done").unlink()
    info["hashes"] = {path.name: hash_of(path) for path in sorted(building.iterdir())}
    (building / "info.json").write_text(json.dumps(sealed(info), indent=2) + "\n")
    sync_tree(building)


def _write(rows: Rows, transform: Transform, building: Path, show_progress: bool) -> dict[str, Any]:
    """Decode all rows in order into the folder, a few chunks in memory at a time."""
    _check_room(rows, transform, building.parent)
    settled = settle(rows, transform)
    rows.seen.clear()
    _check_room(rows, settled, building.parent)
    digest, labels, corrupt = hashlib.sha256(), array("q"), list[str]()
    with (building / "images.bin").open("wb") as file, _told(rows, show_progress) as told:
        for chunk in decoded(rows, settled):
            for pixels, label in chunk:
                if isinstance(pixels, str):
                    corrupt.append(pixels)
                else:
                    file.write(pixels.data)
                    digest.update(pixels.data)
                    labels.append(label)
            told.advance(len(chunk))
            with written_whole(building / "rows_done") as count:  # whoever waits may be reading it
                count.write_text(str(len(labels) + len(corrupt)))
    shape = (len(labels), *(settled.shape or ()))
    dtype = settled.first_dtype or "uint8"
    of_type = "" if dtype == "uint8" else dtype  # so that images of 8 bits keep their fingerprints
    if rows.label_column is not None:
        np.save(building / "labels.npy", np.asarray(labels, dtype=np.int64), allow_pickle=False)
        digest.update(labels.tobytes())
    return {
        "name": rows.name,
        "columns": [rows.image_column, rows.label_column],
        "treatment": transform.key(),
        "pillow": PIL.__version__,
        "shape": shape,
        "dtype": dtype,
        "fingerprint": hashlib.sha256(f"{shape}{of_type}{digest.hexdigest()}".encode()).hexdigest()[:32],
        "corrupt": corrupt,
        "seen": rows.seen.summary(),
    }


def _check_room(rows: Rows, transform: Transform, folder: Path) -> None:
    """Raise ValueError where the decoded images will not fit on the disk, as far as their shape is known."""
    shape = transform.shape or ((transform.channels or 1, *transform.size) if transform.size else (0, 0, 0))
    each = np.dtype(transform.first_dtype or transform.dtype or "uint8").itemsize
    needed, free = len(rows.dataset) * math.prod(shape) * each, shutil.disk_usage(folder).free
    if needed > free:
        fits = max(1, math.isqrt(free // (len(rows.dataset) * shape[0] * each)))
        raise ValueError(
            f"{len(rows.dataset)} images of {' x '.join(map(str, shape))} of {rows.name!r} take {needed / 2**30:,.1f} "
            f"GiB, and {free / 2**30:,.1f} GiB are free in {folder}; give data.resolution {fits} or less, "
            "data.cache_dir on a larger disk, or data.streaming true"
        )


def decoded(rows: Rows, transform: Transform) -> Iterator[list[ReadRow]]:
    """Chunks of rows, in order, read by several threads."""

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
    """None where there is no cache, or one that something has changed since it was made."""
    try:
        info = json.loads((cache / "info.json").read_bytes())
        if not is_intact(info) or any(hash_of(cache / name) != digest for name, digest in info["hashes"].items()):
            return None
        shape, images, labels = info["shape"], cache / "images.bin", cache / "labels.npy"
        size, dtype = int(np.prod(shape)), TORCH[info["dtype"]]
        if images.stat().st_size != size * dtype.itemsize:
            return None
        return CachedImages(
            images=torch.from_file(str(images), shared=False, size=size, dtype=dtype).view(shape),
            labels=torch.from_numpy(np.load(labels, allow_pickle=False)) if info["columns"][1] is not None else None,
            fingerprint=info["fingerprint"],
            corrupt=info["corrupt"],
            seen=info["seen"],
            folder=cache,
        )
    except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, AttributeError):  # JSON of any other form
        return None


def _judge(rows: Rows, corrupt: list[str], on_corrupt: OnCorrupt) -> None:
    """Raise ValueError where the corrupt images are too many."""
    if len(corrupt) == len(rows.dataset):
        raise ValueError(sentence_of(rows, corrupt, f"is data.image_column {rows.image_column!r} the right one?"))
    if corrupt and on_corrupt == "error":
        raise ValueError(sentence_of(rows, corrupt, "repair them, or give data.on_corrupt skip to leave them out"))


def sentence_of(rows: Rows, corrupt: list[str], then: str) -> str:
    """How many images are corrupt, the first of them by name and reason, and what to do."""
    more = f"; and {len(corrupt) - NAMED} more" if len(corrupt) > NAMED else ""
    counted = f"{len(corrupt)} of the {len(rows.dataset)} images of {rows.name!r} cannot be decoded"
    return f"{counted}: {'; '.join(corrupt[:NAMED])}{more}; {then}"


def _told(rows: Rows, show_progress: bool) -> Progress:
    return Progress(f"decoding {rows.name}", len(rows.dataset), "image", show_progress)
