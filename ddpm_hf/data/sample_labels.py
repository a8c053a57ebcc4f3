"""The classes of generated images, as the files that hold the images say."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np

from ddpm_hf.data.folders import FolderOfImages, classes_of, list_folder, state_of
from ddpm_hf.data.sample_sets import opened, table_of

Label = int | str
COLUMNS = ("label", "labels")
IN_NPZ = ("arr_1", *COLUMNS)


def load_labels(source: Path, of_path: Callable[[str], Label] | None = None) -> Sequence[Label] | None:
    """The class of each image that `ddpm_hf.data.sample_sets.load_images` reads of a source, in the same order.

    Args:
        source: As there. Classes are the column ``label`` (or ``labels``) of tables, the integers beside an array, as
            ``arr_1`` of ADM's files, and else the folders that images lie in.
        of_path: From the path of an image file to its class, in place of its folder.

    Returns:
        Numbers or names; None where nothing says them.

    Raises:
        ValueError: the source cannot be read, or only some of its images have a class.
    """
    is_file = source.is_file()
    if is_file:
        found = FolderOfImages(source.parent)
        found.put(source.name, state_of(source))
    else:
        if (source / "samples.npz").exists():
            return _of_npz(source / "samples.npz")
        if (source / "samples.npy").exists():
            return _of_npy(source / "labels.npy")
        found = list_folder(source)
    found, members = opened(source, found, is_file)
    if found.tables:
        tables = [_of_table(found.path / table) for table in found.tables]
        return _all_or_none(source, None if None in tables else [label for table in tables for label in table or ()])
    images = list(found.images)
    if members.labels:
        return _all_or_none(source, [members.labels.get(image) for image in images])
    if of_path is not None:
        return [of_path(image) for image in images]
    return classes_of([found.place(image) for image in images])


def _of_npz(path: Path) -> Sequence[Label] | None:
    with np.load(path, allow_pickle=False) as file:
        name = next((name for name in IN_NPZ if name in file), None)
        return None if name is None else _numbers(file[name], f"{name} of {path}", len(file["arr_0"]))


def _of_npy(path: Path) -> Sequence[Label] | None:
    if not path.exists():
        return None
    images = np.load(path.with_name("samples.npy"), mmap_mode="r", allow_pickle=False)
    return _numbers(np.load(path, allow_pickle=False), str(path), len(images))


def _numbers(labels: Any, where: str, count: int) -> list[Label]:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"{where} is {labels.dtype} of shape {labels.shape} and must be the classes of the {count} images: integers"
        )
    numbers: list[Label] = labels.tolist()
    return numbers


def _of_table(path: Path) -> list[Label | None] | None:
    dataset = table_of(path)
    column = next((name for name in COLUMNS if name in dataset.column_names), None)
    if column is None:
        return None
    labels, kind = list(dataset[column]), dataset.features[column]
    if isinstance(kind, datasets.ClassLabel):
        return [None if label is None or label < 0 else kind.int2str(label) for label in labels]
    if not isinstance(kind, datasets.Value) or not kind.dtype.startswith(("int", "uint", "string", "large_string")):
        raise ValueError(f"the column {column!r} of {PurePosixPath(path).name} is {kind} and must be integers or text")
    return labels


def _all_or_none(source: Path, labels: Sequence[Label | None] | None) -> Sequence[Label] | None:
    """The labels, if each image has one; None if none has.

    Raises:
        ValueError: some have.
    """
    there = [label for label in labels or () if label is not None]
    if labels is not None and 0 < len(there) < len(labels):
        raise ValueError(f"{len(labels) - len(there)} of the {len(labels)} images in {source} have no label")
    return there or None
