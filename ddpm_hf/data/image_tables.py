"""From the images that were found to a table for each split: the images, and their labels or what metadata say."""

import io
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ddpm_hf.data.archives import stream_of
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.data.folders import FolderOfImages, classes_of, shown, splits_of
from ddpm_hf.data.members import Label, Members
from ddpm_hf.data.settings import DataConfig

MOST_CLASSES = 100_000
"""Integers beyond are no classes."""


class Tables(NamedTuple):
    """What `tables_of` finds.

    Args:
        of_split: A data set for each split, whose first column holds the images' names.
        remarks: What may not be as it seems.
        labels_are_splits: Whether the labels only say again which split an image is of.
    """

    of_split: dict[str, datasets.Dataset]
    remarks: list[str]
    labels_are_splits: bool = False


def tables_of(found: FolderOfImages, members: Members, config: DataConfig) -> Tables:
    """A data set for each split.

    Raises:
        ValueError: metadata or labels cannot be read; the message is the reason.
    """
    if found.metadata:
        return _described(found, members)
    images = list(found.images)
    places = [found.place(image) for image in images]
    splits = splits_of(images, places)
    place_of = dict(zip(images, places, strict=True))
    if members.labels:
        return _labelled(splits, members.labels, config)
    remarks = list[str]()
    everywhere = dict(zip(images, classes_of(places) or (), strict=False))
    classes = {
        split: [everywhere[image] for image in inside]
        if everywhere
        else classes_of([place_of[image] for image in inside])
        for split, inside in splits.items()
    }
    names = sorted({name for labels in classes.values() for name in labels or ()})  # the same in all splits
    tables = {}
    for split, inside in splits.items():
        columns: dict[str, Any] = {"image": inside}
        features: dict[str, Any] = {"image": datasets.Value("string")}
        labels = classes[split]
        depths = {place_of[image].count("/") for image in inside}
        if labels is not None:
            number = {name: index for index, name in enumerate(names)}
            columns["label"], features["label"] = [number[name] for name in labels], datasets.ClassLabel(names=names)
        elif depths != {0} and len(depths) > 1:
            remarks.append("the folders are not taken for classes, since images lie at different depths")
        tables[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    as_classes = [name for name in names if name in ("train", "test", "val", "validation")]
    if as_classes and len(splits) == 1:
        remarks.append(f"{' and '.join(as_classes)}, among other folders, is taken for a class and not for a split")
    each_of_one = len(splits) > 1 and all(labels and len({*labels}) == 1 for labels in classes.values())
    return Tables(tables, remarks, each_of_one and len(names) == len(splits))


def _labelled(splits: dict[str, list[str]], labels: dict[str, Label], config: DataConfig) -> Tables:
    """With the labels that files hold beside the images: integers or text, each of which is a class."""
    values = {label for label in labels.values() if label is not None}
    numbers, is_text = [value for value in values if isinstance(value, int)], any(isinstance(v, str) for v in values)
    image, column = config.image_column or "image", config.label_column or "label"
    kind: Any = datasets.Value("int64")
    if is_text:
        kind = datasets.ClassLabel(names=sorted(map(str, values)))
    elif numbers and min(numbers) >= 0 and max(numbers) < MOST_CLASSES:
        kind = datasets.ClassLabel(num_classes=max(numbers) + 1)
    features = datasets.Features({image: datasets.Value("string"), column: kind})
    tables = {}
    for split, inside in splits.items():
        found = [labels.get(name) for name in inside]
        if is_text:
            found = [None if label is None else kind.str2int(str(label)) for label in found]
        tables[split] = datasets.Dataset.from_dict({image: inside, column: found}, features=features)
    return Tables(tables, [])


def _described(found: FolderOfImages, members: Members) -> Tables:
    """Tables of the metadata files, whose column ``file_name`` says which image a row is of."""
    images = list(found.images)
    by_split = splits_of(images, [found.place(image) for image in images])
    split_of = {image: split for split, inside in by_split.items() for image in inside}
    parts: dict[str, list[pa.Table]] = {}
    described = set[str]()
    for file in found.metadata:
        table = _read_metadata(file, members)
        archive, separator, inner = file.rpartition("::")
        below = PurePosixPath(inner).parent
        paths = [(below / str(name)).as_posix() for name in table["file_name"].to_pylist()]
        if outside := next((path for path in paths if path.startswith("/") or ".." in path.split("/")), None):
            raise ValueError(f"{shown(file)} names {shown(outside)!r}, which is not in its folder")
        names = [name for name in table.column_names if name not in ("file_name", "image")]
        table = table.select(names)
        paths = [f"{archive}{separator}{path}" for path in paths]
        if members.has_pages:  # a row is of all the pages of its file
            pages = [members.pages(path) for path in paths]
            table = table.take(pa.array([index for index, inside in enumerate(pages) for _ in inside], pa.int64()))
            paths = [page for inside in pages for page in inside]
        table = table.add_column(0, "image", pa.array(paths, pa.string()))
        described.update(paths)
        splits = [split_of.get(path, next(iter(by_split))) for path in paths]
        for name in dict.fromkeys(splits):
            here = [index for index, split in enumerate(splits) if split == name]
            parts.setdefault(name, []).append(table.take(pa.array(here)))
    try:
        tables = {
            split: datasets.Dataset(pa.concat_tables(part, promote_options="permissive"))
            for split, part in parts.items()
        }
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ValueError(f"{', '.join(found.metadata)} do not go together: {_one_line(error)}") from error
    left = len(found.images.keys() - described)
    return Tables(tables, [f"not read: {left} image(s) that {', '.join(found.metadata)} does not name"] if left else [])


def _read_metadata(file: str, members: Members) -> pa.Table:
    ending = PurePosixPath(file).suffix
    try:
        content: io.IOBase = stream_of(members.content(file))  # type: ignore[assignment]
        if ending == ".csv":
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(content, parse_options=options)
        else:
            table = pyarrow.json.read_json(content) if ending == ".jsonl" else pyarrow.parquet.read_table(content)
    except (pa.ArrowException, OSError, ValueError, CorruptImageError) as error:
        raise ValueError(f"{shown(file)} cannot be read: {_one_line(error)}") from error
    if "file_name" not in table.column_names or not len(table):
        raise ValueError(f"{shown(file)} has no column file_name with rows, only {table.column_names}")
    return table


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
