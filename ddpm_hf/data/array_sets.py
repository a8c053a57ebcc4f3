"""Which arrays of numpy's files are images, which their labels, and which axis is which."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from ddpm_hf.data.arrays import Head, Layout, layout_in_folder, layout_of_stack
from ddpm_hf.data.folders import FolderOfImages, shown, split_named
from ddpm_hf.data.settings import DataConfig

LABELS = ("label", "labels", "y", "target", "targets", "class", "classes", "cls", "arr_1")
"""Names, or words of them, of integers that are taken for labels where there are several."""


@dataclass(frozen=True)
class Arrays:
    """An array of images, or one image.

    Args:
        path: The file, below its folder.
        head: What it is.
        layout: Axes of one image.
        is_stack: Whether there is an axis before these.
        labels: One for each image, or None.
        split: The part of the data set that its name stands for; None for none.
    """

    path: str
    head: Head
    layout: Layout
    is_stack: bool
    labels: list[int] | None = None
    split: str | None = None


Heads = dict[str, list[Head]]
"""The arrays of each file."""


def arrays_of_one_set(heads: Heads, config: DataConfig, found: FolderOfImages) -> Iterator[Arrays]:
    """One array of images (N, ...) with its labels, or one for each split, as ``x_train`` and ``x_test``.

    Arrays that are neither are counted in ``found.others``.

    Raises:
        ValueError: it is not clear which of them are the images.
    """
    named = {
        head.name or path.rpartition("::")[2].removesuffix(PurePosixPath(path).suffix): (path, head)
        for path, of_file in heads.items()
        for head in of_file
    }
    candidates = {name: head for name, (_, head) in named.items() if head.may_be_images}
    where = shown(next(iter(heads))) if len(heads) == 1 else shown(found.path.name)
    chosen = _chosen(candidates, config, where, [*named])
    splits = {name: split_named(name) for name in chosen}
    if len(chosen) > 1 and (None in splits.values() or len({*splits.values()}) < len(chosen)):
        raise ValueError(f"{where} holds several arrays of images, {_list(chosen)}; give data.image_column")
    used = set[str]()
    for name in chosen:
        path, head = named[name]
        split = splits[name] if len(chosen) > 1 else None
        beside = {
            other: head
            for other, (_, head) in named.items()
            if split is None or split_named(other) == split or other == config.label_column
        }
        label = _label_of(beside, head.shape[0], config, where)
        used |= {name, label or name}
        with _of(path, head):
            layout = layout_of_stack(head.shape, config.layout)
        yield Arrays(path, head, layout, True, named[label][1].labels if label else None, split)
    _count(found.others, [name for name in named if name not in used])


def arrays_of_files(heads: Heads, config: DataConfig, found: FolderOfImages) -> Iterator[Arrays]:
    """One image or one stack of them for each file, with the labels that lie in it.

    Raises:
        ValueError: as `arrays_of_one_set`.
    """
    for path, of_file in heads.items():
        named = {head.name: head for head in of_file}
        candidates = {name: head for name, head in named.items() if head.may_be_images}
        chosen = _chosen(candidates, config, shown(path), [*named])
        if len(chosen) > 1:
            raise ValueError(f"{shown(path)} holds several arrays of images, {_list(chosen)}; give data.image_column")
        name = chosen[0]
        head = named[name]
        with _of(path, head):
            layout, is_stack = layout_in_folder(head.shape, config.layout)
        label = _label_of(named, head.shape[0] if is_stack else None, config, shown(path))
        yield Arrays(path, head, layout, is_stack, named[label].labels if label else None)
        _count(found.others, [other for other in named if other not in (name, label)])


def _chosen(candidates: dict[str, Head], config: DataConfig, where: str, names: list[str]) -> list[str]:
    """Names of arrays that are images."""
    wanted = config.image_column
    if wanted is not None and wanted != "image":
        if wanted not in names:
            raise ValueError(f"data.image_column is {wanted!r}, and the arrays of {where} are {_list(names)}")
        return [wanted]
    if not candidates:
        raise ValueError(f"{where} holds no array of images, only {_list(names)}")
    return [*candidates]


def _label_of(named: dict[str, Head], count: int | None, config: DataConfig, where: str) -> str | None:
    """The name of the only integers of which there are as many as images (one, for a single image)."""
    fitting = [name for name, head in named.items() if head.labels is not None and len(head.labels) == (count or 1)]
    if config.label_column in named:
        if config.label_column not in fitting:
            raise ValueError(
                f"data.label_column is {config.label_column!r}, and that array of {where} has not one integer for each "
                f"of the {count or 1} image(s)"
            )
        return config.label_column
    if len(fitting) > 1:
        fitting = [name for name in fitting if {*re.split(r"[^a-z]+", name.lower()), name} & {*LABELS}] or fitting
    if len(fitting) > 1:
        raise ValueError(f"{where} holds several arrays of integers, {_list(fitting)}; give data.label_column")
    return fitting[0] if fitting else None


@contextmanager
def _of(path: str, head: Head) -> Iterator[None]:
    """Name the array in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"the array in {shown(path)}{f' ({shown(head.name)})' if head.name else ''} {error}"
        ) from error


def _count(others: Counter[str], names: list[str]) -> None:
    for name in names:
        others[f"array {shown(name)}"] += 1


def _list(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names)
