"""Which column of a data set holds its images, and which one their labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets

from ddpm_hf.data.arrays import array_of, whole_type
from ddpm_hf.data.loading import Loaded
from ddpm_hf.data.rows import Rows
from ddpm_hf.data.settings import DataConfig

PATH_COLUMNS = ("image", "path", "file", "file_name", "filename", "image_path")
"""Names of columns of text that are taken for paths of images unasked."""


def rows_of(config: DataConfig, loaded: Loaded) -> Rows:
    """The columns to use, by their names or types.

    Raises:
        ValueError: they are not there, not clear, or hold other things.
    """
    dataset = loaded.dataset
    types = dataset.features or dataset._resolve_features().features
    image_column = _image_column(config, types)
    label_column = _label_column(config, types)
    wanted = [image_column] if label_column is None else [image_column, label_column]
    dataset, fetch = dataset.select_columns(wanted), loaded.fetch
    if not _is_array(types[image_column]):
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    else:
        fetch = partial(array_of, dtype=_dtype_of(types[image_column]), config=config)
    classes = None
    if label_column is not None and _is_text(types[label_column]):
        if config.streaming:
            raise ValueError(
                f"data.label_column {label_column!r} of {config.name!r} holds text, whose classes are not known in a "
                "stream; give data.streaming false, or a column of the type ClassLabel"
            )
        classes = tuple(sorted(name for name in dataset.unique(label_column) if name is not None))
    return Rows(
        *(config.name, dataset, image_column, label_column, loaded.folder, classes),
        advises=loaded.advises,
        fetch=fetch,
    )


def source_of(config: DataConfig, loaded: Loaded, rows: Rows) -> str:
    """The fingerprint of a data set with the settings by which its arrays, if it has any, are read."""
    kind = (rows.dataset.features or {}).get(rows.image_column)
    reading = [config.layout, whole_type(config)]
    if reading == [None, "uint8"] or not (loaded.has_arrays or _is_array(kind)):
        return loaded.source
    return f"{loaded.source} {reading}"


def num_classes_of(rows: Rows) -> int | None:
    """As declared; None for no labels and for plain integers."""
    names = class_names_of(rows)
    return None if names is None else len(names)


def class_names_of(rows: Rows) -> tuple[str, ...] | None:
    """The names of the classes, in the order of their numbers; None for no labels and for plain integers."""
    if rows.classes is not None:
        return rows.classes
    kind = None if rows.label_column is None else rows.dataset.features[rows.label_column]
    return tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None


def _image_column(config: DataConfig, types: dict[str, Any]) -> str:
    if config.image_column is not None:
        return _named(config, "image_column", types, _may_be_images, "images")
    ways: tuple[Callable[[str, Any], bool], ...] = (
        lambda name, kind: isinstance(kind, datasets.Image),
        lambda name, kind: _is_encoded(kind),
        lambda name, kind: _is_array(kind) and _dtype_of(kind).startswith(("int", "uint")),
        lambda name, kind: _is_text(kind) and name.lower() in PATH_COLUMNS,
        lambda name, kind: _is_array(kind),  # of floats, which boxes and points have as well
    )
    for fits in ways:
        found = [name for name, kind in types.items() if fits(name, kind)]
        if found:
            return _only(config, "image_column", found, "images")
    raise ValueError(
        f"the data set {config.name!r} has no column of images, only {list(types)}; give data.image_column where one "
        "of them holds paths, or another data.name"
    )


def _label_column(config: DataConfig, types: dict[str, Any]) -> str | None:
    if config.label_column is not None:
        return _named(config, "label_column", types, lambda kind: _is_label(kind) or _is_text(kind), "class labels")
    # Integers may be anything; only those that are declared as classes are taken for labels unasked.
    found = [name for name, kind in types.items() if isinstance(kind, datasets.ClassLabel)]
    return _only(config, "label_column", found, "class labels") if found else None


def _named(config: DataConfig, setting: str, types: dict[str, Any], fits: Callable[[Any], bool], content: str) -> str:
    name: str = getattr(config, setting)
    if name not in types:
        raise ValueError(f"data.{setting} is {name!r}, and the columns of {config.name!r} are {list(types)}")
    if not fits(types[name]):
        raise ValueError(
            f"data.{setting} is {name!r}, a column of {types[name]} and not of {content}; the columns of "
            f"{config.name!r} are {list(types)}"
        )
    return name


def _only(config: DataConfig, setting: str, found: list[str], content: str) -> str:
    if len(found) > 1:
        raise ValueError(f"the data set {config.name!r} has several columns of {content}, {found}; give data.{setting}")
    return found[0]


def _may_be_images(kind: Any) -> bool:
    return isinstance(kind, datasets.Image) or _is_encoded(kind) or _is_array(kind) or _is_text(kind)


def _is_encoded(kind: Any) -> bool:
    """Bytes, or what pandas makes of images: ``{"bytes": ..., "path": ...}``."""
    if isinstance(kind, dict):
        return kind.keys() == {"bytes", "path"}
    return isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")


def _is_array(kind: Any) -> bool:
    return _dtype_of(kind).startswith(("int", "uint", "float", "bool"))


def _dtype_of(kind: Any) -> str:
    """Type of the numbers of an array, declared or of lists in lists; empty for other columns."""
    if isinstance(kind, datasets.Array2D | datasets.Array3D):
        return str(kind.dtype)
    depth = 0
    while isinstance(kind, datasets.List | datasets.LargeList | list):
        kind, depth = kind[0] if isinstance(kind, list) else kind.feature, depth + 1
    return str(kind.dtype) if depth >= 2 and isinstance(kind, datasets.Value) else ""


def _is_text(kind: Any) -> bool:
    return isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")


def _is_label(kind: Any) -> bool:
    is_integer = isinstance(kind, datasets.Value) and kind.dtype.startswith(("int", "uint", "bool"))
    return is_integer or isinstance(kind, datasets.ClassLabel)
