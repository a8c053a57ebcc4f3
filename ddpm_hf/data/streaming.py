"""Images read anew in each run, for data sets that do not fit on the disk, in an order that every process agrees on."""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm_hf.data.augmentation import check_crop, random_windows
from ddpm_hf.data.decoding import WORKERS
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.data.loading import Loaded
from ddpm_hf.data.rows import Rows, settle
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.transform import Transform
from ddpm_hf.data.value_range import format_of_type

logger = logging.getLogger(__name__)


class StreamedImages:
    """The samples of every step, from a stream.

    The order: pass p over the data takes the files in a random order and shuffles their rows in a buffer of
    ``shuffle_buffer``, both seeded by (seed, p). The global batches are cut one after the other from the endless row of
    passes, so that one may span two of them.
    Every process reads the bytes of all rows, and decodes those of its own samples only: the global batch is the same
    on any number of processes. It holds the encoded rows of the buffer and of one global batch.

    Resuming: a run that goes on at step n sees bitwise the samples that the unbroken run would have seen, as long as
    the data, ``shuffle_buffer`` and the version of datasets stay the same. For that the stream is read again without
    decoding up to step n: once to its end, to learn how long a pass is, if step n lies beyond the first one, and then
    from the start of the pass of step n. A step behind the last one read costs the same.

    Corrupt images: with "error" the first one met stops the run. With "skip" each is replaced by the next readable
    image of its global batch (after the last sample comes the first), with that image's label; a rule that depends on
    the global batch alone, so that the owner of the sample can follow it by itself. A global batch with no readable
    image is an error.

    Args:
        loaded: The data set, streamed, with what stands for its files.
        rows: Its columns.
        transform: What is done to each image; not yet settled.
        num_classes: Labels are below it; None without labels.
        shuffle_buffer: Rows among which the stream is shuffled.
        on_corrupt: See above.

    Attributes:
        name: The data set.
        shape: ``(C, H, W)``, from the first readable image, or of the random windows of it.
        fingerprint: A hash of the files' content, the transform and the buffer.
        remark: What was left out or is not as it may seem, for the start of a run.
        format: What the numbers mean.

    Raises:
        ValueError: there is no readable image, or the first does not go with the settings.
    """

    def __init__(
        self,
        config: DataConfig,
        loaded: Loaded,
        rows: Rows,
        transform: Transform,
        num_classes: int | None,
    ) -> None:
        self._rows = rows
        try:
            self._transform = settle(rows, transform)
        except OSError as error:
            raise ValueError(_unreadable(rows, error)) from error
        if self._transform.shape is None:
            raise ValueError(
                f"the data set {rows.name!r} has no image that can be decoded; see data.name and data.split"
            )
        self._shuffle_buffer = config.shuffle_buffer
        self._on_corrupt = config.on_corrupt
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="decoding")

        self.name = rows.name
        self.shape = self._transform.shape
        self.num_classes = num_classes
        self.remark = loaded.remark
        self.format = format_of_type(config, rows.name, str(self._transform.first_dtype), self.shape[0])
        self._crop_size = config.crop_size
        self._loaded = loaded
        self._parts = [rows.image_column, rows.label_column, transform.key(), config.shuffle_buffer, self.shape]
        if self._crop_size is not None:
            check_crop(self.name, self.shape, self._crop_size)
            self.shape = (self.shape[0], *self._crop_size)
        self.fingerprint = self._fingerprint(loaded.source)

        self._seed: int | None = None  # of the stream that is open
        self._pass = 0
        self._iterator: Iterator[dict[str, Any]] = iter(())
        self._position = 0  # rows read, over all passes
        self._pass_length: int | None = None  # not known before the end of a pass
        self._held: tuple[tuple[int, int, int], list[dict[str, Any]]] | None = None

    def was(self, fingerprint: str) -> bool:
        """Whether an earlier version gave this data set ``fingerprint``, which did not follow the files' content."""
        source = self._loaded.source_before()
        return source is not None and self._fingerprint(source) == fingerprint

    def _fingerprint(self, source: str) -> str:
        return hashlib.sha256(json.dumps([source, *self._parts]).encode()).hexdigest()[:32]

    def batch(self, step: int, batch_size: int, start: int, stop: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Samples ``start`` to ``stop - 1`` of the global batch of ``step``.

        Returns:
            uint8 ``(stop - start, C, H, W)``, and int64 ``(stop - start,)`` or None.

        Raises:
            ValueError: an image does not go with the others, is corrupt, or has no label where there are labels.
        """
        rows = self._global_batch(step, batch_size, seed)
        samples = list(self._threads.map(lambda index: self._sample(rows, index, step), range(start, stop)))
        images = torch.from_numpy(np.stack([pixels for pixels, _ in samples]))
        if self._crop_size is not None:
            images = random_windows(images.unbind(), self._crop_size, seed, step, range(start, stop))
        if self.num_classes is None:
            return images, None
        return images, torch.tensor([label for _, label in samples], dtype=torch.int64)

    def _sample(self, rows: list[dict[str, Any]], index: int, step: int) -> tuple[npt.NDArray[Any], int]:
        for other in range(index, index + len(rows)):
            row = rows[other % len(rows)]
            where = f"sample {other % len(rows)} of step {step}"
            try:
                pixels = self._rows.read(row, self._transform, where)
            except CorruptImageError as error:
                problem = f"the image in {self._rows.place(row, where)} of {self.name!r} cannot be decoded: {error}"
                if self._on_corrupt == "error":
                    raise ValueError(f"{problem}; repair it, or give data.on_corrupt skip to replace it") from error
                logger.warning("%s; the next one takes its place", problem)
                continue
            label = self._rows.label(row)
            if self.num_classes is not None and not 0 <= label < self.num_classes:
                raise ValueError(
                    f"{self._rows.place(row, where)} of {self.name!r} has no label of 0 to {self.num_classes - 1} in "
                    f"the column {self._rows.label_column!r}; give another data.label_column"
                )
            return pixels, label
        raise ValueError(
            f"none of the {len(rows)} images of step {step} of {self.name!r} can be decoded; see data.name"
        )

    def _global_batch(self, step: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
        """The rows of the whole batch, kept for the micro-batches of the same step."""
        key = (step, batch_size, seed)
        if self._held is None or self._held[0] != key:
            self._held = None  # before the next rows are read, so that two batches are never in memory
            self._seek(step * batch_size, seed)
            self._held = key, [self._next() for _ in range(batch_size)]
        return self._held[1]

    def _seek(self, position: int, seed: int) -> None:
        """Have the row at ``position`` in the endless row of passes come next."""
        if seed != self._seed or position < self._position:
            self._seed = seed
            self._open_pass(0 if self._pass_length is None else position // self._pass_length)
        while self._position < position:
            if self._pass_length is not None and position // self._pass_length > self._pass:
                self._open_pass(position // self._pass_length)
            else:
                self._next()

    def _next(self) -> dict[str, Any]:
        try:
            row = next(self._iterator, None)
        except OSError as error:
            raise ValueError(_unreadable(self._rows, error)) from error
        if row is None:
            self._pass_length = self._position // (self._pass + 1)
            self._open_pass(self._pass + 1)
            row = next(self._iterator)
        self._position += 1
        return row

    def _open_pass(self, number: int) -> None:
        order = np.random.default_rng([*b"streamed order", self._seed or 0, number])
        # One file at a time, the files in a random order: reading several in turn, datasets 5.2 sleeps for some seconds
        # at the end of each pass, for its threads.
        stream = self._rows.dataset.shuffle(
            generator=order, buffer_size=self._shuffle_buffer, max_buffer_input_shards=1
        )
        self._iterator = iter(stream)
        self._pass = number
        self._position = number * (self._pass_length or 0)


def _unreadable(rows: Rows, error: OSError) -> str:
    return f"the stream of {rows.name!r} cannot be read: {' '.join(str(error).split())}; see data.name, or try again"
