"""WebDataset: tar files in which files of one name belong together, as ``000.jpg``, ``000.cls`` and ``000.json``."""

import json
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from ddpm_hf.data.archives import Tar
from ddpm_hf.data.folders import FolderOfImages, shown
from ddpm_hf.data.settings import DataConfig

BESIDE = (".cls", ".json")


def labels_of_shards(tar: Tar, inside: FolderOfImages, config: DataConfig) -> dict[str, int | str | None]:
    """The labels of images, by their names; empty where there are none beside them.

    They are what ``.cls`` holds, or ``label`` of the JSON, or what data.label_column names of these. Of several images
    of one key, ``inside`` keeps those that data.image_column names.

    Raises:
        ValueError: it is not clear which images are meant, or a label cannot be read.
    """
    beside = {name: PurePosixPath(name).suffix.lower() for name in tar.names if name.lower().endswith(BESIDE)}
    of_key: dict[str, dict[str, str]] = {}
    for name, ending in beside.items():
        of_key.setdefault(_key(name), {})[ending] = name
    keys = [_key(name) for name in inside.images]
    if not of_key.keys() & {*keys}:
        return {}
    _choose(inside, keys, config)
    wanted = config.label_column
    labels: dict[str, int | str | None] = {}
    if wanted in (None, "cls") and any(".cls" in of_key.get(key, {}) for key in keys):
        for name in inside.images:
            file = of_key.get(_key(name), {}).get(".cls")
            labels[name] = None if file is None else _value(tar.read(file).decode(errors="replace").strip())
            inside.others[".cls"] -= file is not None
        return labels
    for name in inside.images:
        file = of_key.get(_key(name), {}).get(".json")
        labels[name] = None if file is None else _field(tar, file, wanted or "label")
    return labels if any(label is not None for label in labels.values()) else {}


def _choose(inside: FolderOfImages, keys: list[str], config: DataConfig) -> None:
    """Leave one image of each key."""
    if len({*keys}) == len(keys):
        return
    endings = sorted({_ending(name) for name in inside.images})
    if config.image_column not in endings:
        raise ValueError(f"its keys have several images, {', '.join(map(shown, endings))}; give data.image_column")
    kept = {name: state for name, state in inside.images.items() if _ending(name) == config.image_column}
    inside.others += Counter(f".{_ending(name)}" for name in inside.images if name not in kept)
    inside.images = kept


def _key(name: str) -> str:
    """All up to the first dot of the file's own name, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _value(text: str) -> int | str | None:
    try:
        return int(text)
    except ValueError:
        return text or None


def _field(tar: Tar, file: str, name: str) -> Any:
    try:
        found = json.loads(tar.read(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(file)} cannot be read as JSON: {error}") from error
    value = found.get(name) if isinstance(found, dict) else None
    if value is not None and (not isinstance(value, int | str) or isinstance(value, bool)):
        raise ValueError(f"{name!r} of {shown(file)} is {value!r:.60}, and no class")
    return value
