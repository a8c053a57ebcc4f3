"""A data set of images for training, and which of them make up the batch of a given step."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor

from ddpm_hf.data.decoding import Rows, Transform
from ddpm_hf.data.image_cache import cached_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.streaming import StreamedImages
from ddpm_hf.randomness import random_stream

DIGITS = Path(__file__).parents[1] / "assets" / "digits"


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
    def num_classes(self) -> int | None:
        """Number of classes; labels are below it. None if there are no labels."""

    def batch(self, step: int, batch_size: int, start: int, stop: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Samples ``start`` to ``stop - 1`` of the global batch of ``step``, which depends on nothing but the seed.

        Returns:
            uint8 ``(stop - start, C, H, W)``, and int64 ``(stop - start,)`` or None.
        """


@dataclass(frozen=True)
class ImageData:
    """Decoded images, all in memory (or mapped into it).

    Args:
        name: What the images are, for messages and files.
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)`` of 0 or more, or None where the data have none.
        fingerprint: Changes with the images or labels.
        num_classes: Labels are below it; None for the largest label + 1, and where there are none.
    """

    name: str
    images: Tensor
    labels: Tensor | None
    fingerprint: str = ""
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.num_classes is None:
            object.__setattr__(self, "num_classes", int(self.labels.max()) + 1)

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.images.shape[1:])

    def batch(self, step: int, batch_size: int, start: int, stop: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Samples ``start`` to ``stop - 1`` of the global batch of ``step``: a function of these numbers alone."""
        picked = torch.from_numpy(batch_indices(step, batch_size, len(self), seed)[start:stop])
        return self.images[picked], None if self.labels is None else self.labels[picked]


def load_image_data(config: DataConfig, show_progress: bool = False) -> ImageSource:
    """The images that the settings name: from their cache on disk, or streamed.

    Raises:
        ValueError: with the setting to change, where the data cannot be loaded or do not go with the settings.
    """
    return _stream(config) if config.streaming else load_cached_images(config, show_progress)


def load_cached_images(config: DataConfig, show_progress: bool = False) -> ImageData:
    """The images that the settings name, decoded now or in an earlier run, as a memory map of their cache.

    Args:
        config: What to load and what to do to the images; ``streaming`` and ``shuffle_buffer`` play no part.
        show_progress: Show a bar while the images are decoded.

    Raises:
        ValueError: as :func:`load_image_data`.
    """
    dataset, source = _load(config)
    rows = _rows(config, dataset)
    folder = config.cache_dir or Path(HF_HOME) / "ddpm_hf" / "images"
    cached = cached_images(rows, source, _transform(config), folder, config.on_corrupt, show_progress)

    labels, num_classes = cached.labels, _num_classes(rows)
    if labels is not None:
        unlabelled = int((labels < 0).sum())
        if unlabelled == len(labels) and config.label_column is None:
            labels = num_classes = None  # as test splits have them, whose labels are kept back
        elif unlabelled:
            raise ValueError(
                f"{unlabelled} of the {len(labels)} rows of {config.name!r} have no label of 0 or more in the column "
                f"{rows.label_column!r}; give another data.label_column or data.split"
            )
    return ImageData(config.name, cached.images, labels, cached.fingerprint, num_classes)


def _stream(config: DataConfig) -> StreamedImages:
    dataset, source = _load(config)
    rows = _rows(config, dataset)
    num_classes = _num_classes(rows)
    if rows.label_column is not None and num_classes is None:
        raise ValueError(
            f"data.label_column {rows.label_column!r} of {config.name!r} holds plain integers, whose number of classes "
            "is not known in a stream; give data.streaming false, or a column of the type ClassLabel"
        )
    return StreamedImages(rows, source, _transform(config), num_classes, config.shuffle_buffer, config.on_corrupt)


def _load(config: DataConfig) -> tuple[Any, str]:
    """The data set, not decoded, and a hash of its state."""
    spec: dict[str, Any] = {"path": config.name, "name": config.config, "revision": config.revision}
    if config.name == "digits":
        spec |= {"path": "parquet", "data_files": {part: str(DIGITS / f"{part}.parquet") for part in ("train", "test")}}
    elif config.name.endswith(".parquet"):
        # Under the name that the split has without its slice, so that any split does.
        spec |= {"path": "parquet", "data_files": {re.split(r"[\[+]", config.split)[0]: config.name}}
    try:
        if config.streaming:
            builder = datasets.load_dataset_builder(**spec)
            return builder.as_streaming_dataset(split=config.split), _state_of_files(builder.config.data_files, config)
        dataset = datasets.load_dataset(split=config.split, **spec)
        return dataset, dataset._fingerprint
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # datasets' own errors for broken files hold the reason only in their cause; those of the Hub say it better.
        is_of_the_hub = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        reason = " ".join(str(error if is_of_the_hub else error.__cause__ or error).split()).rstrip(".")
        hint = "; a stream has no slices, so data.split must be a plain name" if config.streaming else ""
        raise ValueError(
            f"split {config.split!r} of the data set {config.name!r} cannot be loaded: {reason} (see data.name: a "
            f"file, a folder or a Hub id, with a token in HF_TOKEN where it is private or gated; data.config, "
            f"data.split and data.revision{hint})"
        ) from error


def _state_of_files(data_files: Any, config: DataConfig) -> str:
    """Hash of the names and sizes of local files (times differ from copy to copy) and the revision of remote ones."""
    state: list[Any] = [config.config, config.split]
    for split, files in (data_files or {}).items():
        for file, origin in zip(files, files.origin_metadata, strict=True):
            path = Path(file)
            state.append([str(split), path.name, path.stat().st_size if path.exists() else origin])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _rows(config: DataConfig, dataset: Any) -> Rows:
    """The columns to use, by their names or types."""
    types = dataset.features or dataset._resolve_features().features
    image_column = _column(config, "image_column", types, lambda kind: isinstance(kind, datasets.Image), "images")
    label_column = _column(config, "label_column", types, _is_label, "class labels")
    if image_column is None:
        raise ValueError(f"the data set {config.name!r} has no column of images, only {list(types)}; name another one")
    wanted = [image_column] if label_column is None else [image_column, label_column]
    dataset = dataset.select_columns(wanted).cast_column(image_column, datasets.Image(decode=False))
    return Rows(config.name, dataset, image_column, label_column)


def _column(
    config: DataConfig, setting: str, types: dict[str, Any], fits: Callable[[Any], bool], content: str
) -> str | None:
    named: str | None = getattr(config, setting)
    if named is None:
        # Integers may be anything; only those that are declared as classes are taken for labels unasked.
        found = [column for column, kind in types.items() if fits(kind) and not isinstance(kind, datasets.Value)]
        if len(found) > 1:
            raise ValueError(
                f"the data set {config.name!r} has several columns of {content}, {found}; give data.{setting}"
            )
        return found[0] if found else None
    if named not in types:
        raise ValueError(f"data.{setting} is {named!r}, and the columns of {config.name!r} are {list(types)}")
    if not fits(types[named]):
        raise ValueError(
            f"data.{setting} is {named!r}, a column of {types[named]} and not of {content}; the columns of "
            f"{config.name!r} are {list(types)}"
        )
    return named


def _is_label(kind: Any) -> bool:
    is_integer = isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint", "bool"))
    return is_integer or isinstance(kind, datasets.ClassLabel)


def _num_classes(rows: Rows) -> int | None:
    """As declared; None for no labels and for plain integers."""
    kind = None if rows.label_column is None else rows.dataset.features[rows.label_column]
    return kind.num_classes if isinstance(kind, datasets.ClassLabel) else None


def _transform(config: DataConfig) -> Transform:
    return Transform(config.channels, config.center_crop, config.resolution, config.resize_filter)


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
