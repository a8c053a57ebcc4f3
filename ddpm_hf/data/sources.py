"""A data set of images for training, and which of them make up the batch of a given step."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor

from ddpm_hf.data.arrays import Layout, channels_first
from ddpm_hf.data.augmentation import check_crop, middles, random_windows
from ddpm_hf.data.columns import class_names_of, num_classes_of, rows_of, source_of
from ddpm_hf.data.image_cache import cached_images
from ddpm_hf.data.loading import load
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.streaming import StreamedImages
from ddpm_hf.data.transform import Transform
from ddpm_hf.data.value_range import format_of
from ddpm_hf.pixels import EIGHT_BITS, LARGEST, PixelFormat
from ddpm_hf.randomness import random_stream


class ImageSource(Protocol):
    """The interface of training images."""

    @property
    def name(self) -> str:
        """Name of the data set, for messages."""

    @property
    def fingerprint(self) -> str:
        """A hash or name that changes with the images and their transforms."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of each image."""

    @property
    def format(self) -> PixelFormat:
        """What the numbers of the images mean."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; labels are below it. None if there are no labels."""

    def batch(self, step: int, batch_size: int, start: int, stop: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Samples ``start`` to ``stop - 1`` of the global batch of ``step``, which depends on nothing but the seed.

        Returns:
            ``(stop - start, C, H, W)`` of the type of ``format``, and int64 ``(stop - start,)`` or None.
        """


@dataclass(frozen=True)
class ImageData:
    """Decoded images, all in memory (or mapped into it).

    Args:
        name: What the images are, for messages and files.
        images: ``(N, C, H, W)``, of the type of ``format``.
        labels: int64 ``(N,)`` of 0 or more, or None where the data have none.
        fingerprint: Changes with the images or labels.
        num_classes: Labels are below it; None for the largest label + 1, and where there are none.
        remark: What was left out or is not as it may seem, for the start of a run.
        format: What the numbers mean.
        uncropped: Larger images ``(N, C, H', W')``, whose middles are ``images``: :meth:`batch` then gives random
            windows of these. None where the images are trained on as they are.
        class_names: What the classes are called, by their numbers; None where they have no names.

    Examples:
        >>> data = ImageData.of(np.zeros((100, 32, 32, 3), np.uint8))
        >>> images, labels = data.batch(step=0, batch_size=16, start=0, stop=16, seed=0)
        >>> images.shape
        torch.Size([16, 3, 32, 32])
    """

    name: str
    images: Tensor
    labels: Tensor | None
    fingerprint: str = ""
    num_classes: int | None = None
    remark: str = ""
    format: PixelFormat = EIGHT_BITS
    uncropped: Tensor | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.num_classes is None:
            object.__setattr__(self, "num_classes", int(self.labels.max()) + 1)

    @classmethod
    def of(
        cls,
        images: Any,
        labels: Any = None,
        *,
        layout: Layout | None = None,
        value_range: tuple[float, float] | None = None,
        name: str = "images",
    ) -> "ImageData":
        """Images that are in memory, as in a notebook, for `ddpm_hf.training.setup.build` or to be scored against.

        Args:
            images: Array or tensor of numbers, ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.
            labels: Integers of 0 or more, ``(N,)``; None for no classes.
            layout: Axes of one image; None decides as the setting ``data.layout`` does.
            value_range: Values that become -1 and 1. None takes all values of uint8 and uint16; other types need it.
            name: For messages.

        Raises:
            ValueError: these are no images or labels, or it is not clear what their axes or values mean.
        """
        try:
            array = channels_first(_as_array(images), layout)
        except ValueError as error:
            raise ValueError(f"the array of {name!r} {str(error).replace('data.layout', 'layout')}") from error
        array = array if array.flags.writeable else array.copy()  # torch has no tensors that are not
        dtype = array.dtype.name
        if value_range is None and dtype not in LARGEST:
            raise ValueError(
                f"the array of {name!r} holds {dtype} values from {array.min():.4g} to {array.max():.4g}, which have "
                "no range of their own; give value_range=(low, high)"
            )
        low, high = value_range or (0, LARGEST[dtype])
        digest = hashlib.sha256(f"{array.shape}{dtype}".encode() + array.data)
        numbers = None
        if labels is not None:
            numbers = _as_array(labels)
            if numbers.shape != array.shape[:1] or numbers.dtype.kind not in "iu" or numbers.min() < 0:
                raise ValueError(
                    f"labels of {name!r} are {numbers.dtype} of shape {numbers.shape} and must be integers of 0 or "
                    f"more, {array.shape[:1]}"
                )
            numbers = numbers.astype(np.int64)
            digest.update(numbers.data)
        return cls(
            name,
            torch.from_numpy(array),
            None if numbers is None else torch.from_numpy(numbers),
            digest.hexdigest()[:32],
            format=PixelFormat(dtype, (low,), (high,)),
        )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.images.shape[1:])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[-2], self.images.shape[-1]

    def batch(self, step: int, batch_size: int, start: int, stop: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Samples ``start`` to ``stop - 1`` of the global batch of ``step``: a function of these numbers alone."""
        picked = torch.from_numpy(batch_indices(step, batch_size, len(self), seed)[start:stop])
        labels = None if self.labels is None else self.labels[picked]
        if self.uncropped is None:
            return self.images[picked], labels
        larger = (self.uncropped[index] for index in picked.tolist())
        return random_windows(larger, self.size, seed, step, range(start, stop)), labels

    def cropped(self, size: tuple[int, int]) -> "ImageData":
        """The same with random windows of a size to train on, and their middles for all else.

        Raises:
            ValueError: the images are no larger.
        """
        check_crop(self.name, self.shape, size)
        height, width = self.shape[1:]
        said = f"trained on random windows of images of {height} x {width}, and compared with their middles"
        return replace(
            self,
            images=middles(self.images, size),
            uncropped=self.images,
            fingerprint=f"{self.fingerprint}-{size[0]}x{size[1]}",
            remark="; ".join(filter(None, [self.remark, said])),
        )


def _as_array(values: Any) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.asarray(values)


def load_image_data(config: DataConfig, show_progress: bool = False) -> ImageSource:
    """The images that the settings name: from their cache on disk, or streamed.

    Raises:
        ValueError: with the setting to change, where the data cannot be loaded or do not go with the settings.
    """
    return _stream(config, show_progress) if config.streaming else load_cached_images(config, show_progress)


def load_cached_images(config: DataConfig, show_progress: bool = False) -> ImageData:
    """The images that the settings name, decoded now or in an earlier run, as a memory map of their cache.

    Args:
        config: What to load and what to do to the images; ``streaming`` and ``shuffle_buffer`` play no part.
        show_progress: Tell how far the decoding is.

    Raises:
        ValueError: as :func:`load_image_data`.

    Examples:
        >>> load_cached_images(DataConfig(name="digits")).images.shape
        torch.Size([1297, 1, 8, 8])
    """
    loaded = load(config, show_progress)
    rows = rows_of(config, loaded)
    folder = config.cache_dir or Path(HF_HOME) / "ddpm_hf" / "images"
    source = source_of(config, loaded, rows)
    cached = cached_images(rows, source, _transform(config), folder, config.on_corrupt, show_progress)

    labels, num_classes = (cached.labels, num_classes_of(rows)) if loaded.has_labels else (None, None)
    if labels is not None:
        unlabelled = int((labels < 0).sum())
        if unlabelled == len(labels) and config.label_column is None:
            labels = num_classes = None  # as test splits have them, whose labels are kept back
        elif unlabelled:
            raise ValueError(
                f"{unlabelled} of the {len(labels)} rows of {config.name!r} have no label of 0 or more in the column "
                f"{rows.label_column!r}; give another data.label_column or data.split"
            )
    form = format_of(config, rows.name, cached)
    remark = "; ".join(filter(None, [loaded.remark, *treatment_of(config, cached.seen, cached.shape)]))
    class_names = None if labels is None else class_names_of(rows)
    data = ImageData(
        config.name, cached.images, labels, cached.fingerprint, num_classes, remark, form, class_names=class_names
    )
    return data if config.crop_size is None else data.cropped(config.crop_size)


def treatment_of(config: DataConfig, seen: dict[str, Any], shape: tuple[int, ...]) -> list[str]:
    """What was done to the images that is not plain from the settings, a sentence each.

    Args:
        config: The settings.
        seen: As :meth:`ddpm_hf.data.rows.Seen.summary` has it.
        shape: ``(C, H, W)`` of the results.
    """
    said, size = list[str](), f"{shape[1]} x {shape[2]}"
    if seen["sizes"] and seen["ends"][-1] != [*shape[1:]]:
        (first, last), few = seen["ends"], seen["sizes"] == 1
        sizes = f"are {first[0]} x {first[1]}" if few else f"have {seen['sizes']} sizes, from {first[0]} x {first[1]}"
        to = "" if few else f" to {last[0]} x {last[1]}"
        is_cut = config.center_crop is not False and (config.center_crop is not None or config.resolution)
        cut = "cut to their middle and " if is_cut else ""
        said.append(f"the images {sizes}{to} (height x width), {cut}brought to {size}")
    if seen["transparent"]:
        done = {
            "composite": f"are laid on {config.background}",
            "channel": "keep opacity as their last channel",
            "drop": "show the colours below it",
        }
        said.append(f"{seen['transparent']} image(s) with transparency {done[config.alpha]} (data.alpha)")
    if seen["rounded"]:
        said.append(f"{seen['rounded']} image(s) of 16 bits are rounded to 8")
    return said


def _stream(config: DataConfig, show_progress: bool) -> StreamedImages:
    loaded = load(config, show_progress)
    rows = rows_of(config, loaded)
    num_classes = num_classes_of(rows) if loaded.has_labels else None
    if rows.label_column is not None and num_classes is None and loaded.has_labels:
        raise ValueError(
            f"data.label_column {rows.label_column!r} of {config.name!r} holds plain integers, whose number of classes "
            "is not known in a stream; give data.streaming false, or a column of the type ClassLabel"
        )
    loaded = replace(loaded, source=source_of(config, loaded, rows))
    return StreamedImages(config, loaded, rows, _transform(config), num_classes)


def _transform(config: DataConfig) -> Transform:
    return Transform(
        channels=config.channels,
        center_crop=config.center_crop,
        resolution=config.resolution,
        resize_filter=config.resize_filter,
        alpha=config.alpha,
        background=config.background,
        dtype=config.dtype,
    )


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> npt.NDArray[np.int64]:
    """The images of the batch of ``step``, ``(batch_size,)``: a function of its arguments alone.

    The batches are cut one after the other from an endless row of permutations of all the images, one for each pass
    over the data, keyed by ``(seed, pass)``: each image appears once in each pass, and a batch may span two of them.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(position, num_images)
    rows = [_permutation(seed, epoch, num_images)[offsets[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return np.concatenate(rows)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> npt.NDArray[np.int64]:
    return random_stream("data order", seed, epoch).permutation(num_images)
