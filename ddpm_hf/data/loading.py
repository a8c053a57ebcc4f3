"""From data.name to a data set of :mod:`datasets`: a folder of images, tables, what save_to_disk left, or a Hub id."""

import errno
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from huggingface_hub import DatasetCard
from huggingface_hub.constants import HF_HOME

from ddpm_hf.data.contents import content_of
from ddpm_hf.data.folders import (
    ARCHIVES,
    ENDINGS,
    TABLES,
    FolderOfImages,
    classes_of,
    list_folder,
    shown,
    splits_of,
    state_of,
)
from ddpm_hf.data.settings import DataConfig

DIGITS = Path(__file__).parents[1] / "assets" / "digits"
DESCRIBED = 5
"""Classes that a message names."""


@dataclass(frozen=True)
class Loaded:
    """A data set whose images are not decoded.

    Args:
        dataset: One of :mod:`datasets`, map-style or streamed.
        source: Changes with the files; for a stream with what is in them, wherever they are.
        folder: Where relative paths start.
        remark: What was left out or is not as it may seem, for the start of a run; empty for nothing.
        source_before: The ``source`` of a stream in versions that looked at names and sizes only; None for none.
        advises: Messages about its images name settings of training.
    """

    dataset: Any
    source: str
    folder: Path = Path()
    remark: str = ""
    source_before: Callable[[], str | None] = lambda: None
    advises: bool = True


def load(config: DataConfig, show_progress: bool = False) -> Loaded:
    """The data set that the settings name.

    Raises:
        ValueError: with the setting to change, where it cannot be loaded.
    """
    path = Path(config.name)
    if config.name == "digits" or "://" in config.name:
        return _by_datasets(config, show_progress)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise _refusal(config, error.strerror or str(error)) from error
    if is_folder:
        return _of_folder(config, path, show_progress)
    ending = path.suffix.lower()
    if is_file and ending != ".parquet":
        raise _refusal(config, _what_it_is(ending))
    looks_local = config.name.startswith((".", "/", "~", "\\")) or config.name.count("/") > 1
    if not is_file and "*" not in config.name and (looks_local or ending in {*ENDINGS, *ARCHIVES, *TABLES}):
        raise _refusal(config, "there is no such file or folder")
    return _by_datasets(config, show_progress)


def _what_it_is(ending: str) -> str:
    if ending in ARCHIVES:
        return f"it is a packed file ({ending}); unpack it, and give the folder"
    if ending in ENDINGS:
        return "it is one image; give the folder"
    return f"it is a file that ends in {ending or 'nothing'!r}; give a folder of images, or parquet"


def _of_folder(config: DataConfig, path: Path, show_progress: bool) -> Loaded:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_to_disk(config, path)
    if config.config is not None or _is_described(path):
        return _by_datasets(config, show_progress)
    found = list_folder(path)
    if found.images and found.tables:
        raise _refusal(
            config,
            f"it holds {len(found.images)} images and {len(found.tables)} table(s) ({shown(found.tables[0])}), and "
            "which of them is meant is not clear; give the table itself, or move it out",
        )
    if found.images:
        return _of_images(config, found, show_progress)
    is_of_tables = found.tables or found.archives or {".csv", ".json", ".jsonl"} & found.others.keys()
    if not is_of_tables and not found.metadata:
        there = f", only {found.not_read()}" if found.others else ""
        raise _refusal(config, f"the folder holds no images{there}")
    return _by_datasets(config, show_progress)


def _is_described(path: Path) -> bool:
    """Whether a card in the folder lists the files of configurations, as data sets of the Hub have it."""
    try:
        return "configs" in DatasetCard.load(path / "README.md").data.to_dict()
    except (OSError, ValueError):
        return False


def _saved_to_disk(config: DataConfig, path: Path) -> Loaded:
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise _refusal(config, f"what save_to_disk left there is not whole ({_one_line(error)})") from error
    parts = saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
    dataset = _cut(config, {name: len(part) for name, part in parts.items()}, lambda name: parts[name])
    files = sorted(file for file in path.rglob("*.arrow"))
    if config.streaming:
        return Loaded(dataset.to_iterable_dataset(), _hash([config.split, content_of(files)]))
    return Loaded(dataset, _hash([config.split, *map(state_of, files)]))


def _cut(config: DataConfig, lengths: dict[str, int], part_of: Callable[[str], Any]) -> datasets.Dataset:
    """The part that data.split names."""
    if config.streaming and re.search(r"[\[+]", config.split):
        raise _refusal(config, "a stream has no slices, so data.split must be a plain name")
    try:
        pieces = datasets.ReadInstruction.from_spec(config.split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        known = re.search(r"Unrecognized|Unknown", str(error))
        reason = f"there are the splits {sorted(lengths)}" if known else _one_line(error)
        raise _refusal(config, reason) from error
    cut = [part_of(piece.splitname).select(range(piece.from_, piece.to)) for piece in pieces]
    dataset = cut[0] if len(cut) == 1 else datasets.concatenate_datasets(cut)
    if not len(dataset):
        raise _refusal(config, "there are no data in it")
    return dataset


def _of_images(config: DataConfig, found: FolderOfImages, show_progress: bool) -> Loaded:
    tables, remarks = _tables(config, found)
    dataset = _cut(config, {split: len(table) for split, table in tables.items()}, lambda name: tables[name])
    others = {split: len(table) for split, table in tables.items() if split not in config.split}
    in_others = [f"{count} image(s) of the split {split}" for split, count in others.items()]
    not_read = found.not_read(*in_others)
    remark = "; ".join([*([f"not read: {not_read}"] if not_read else []), *remarks])
    kinds = {name: str(kind) for name, kind in dataset.features.items()}
    rows = dataset.to_list()
    if not config.streaming:
        states = [found.images.get(row["image"], ()) for row in rows]
        return Loaded(dataset, _hash([kinds, rows, states]), found.path, remark)
    paths = [found.path / image for image, state in found.images.items() if state]
    source = _hash([config.split, kinds, rows, content_of(paths, show_progress)])
    # As datasets streams a folder, so that a run that began so goes on with the same samples.
    features = datasets.Features(dataset.features)
    stream = datasets.IterableDataset.from_generator(_each, gen_kwargs={"rows": tuple(rows)}, features=features)
    return Loaded(stream, source, found.path, remark, lambda: _source_before(config, found.path, rows))


def _each(rows: tuple[dict[str, Any], ...]) -> Iterator[dict[str, Any]]:
    yield from rows


def _tables(config: DataConfig, found: FolderOfImages) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """A data set for each split, and remarks."""
    if found.metadata:
        return _described_tables(config, found)
    splits, remarks = splits_of(list(found.images)), list[str]()
    everywhere = dict(zip(found.images, classes_of(list(found.images)) or (), strict=False))
    classes = {
        split: [everywhere[path] for path in paths] if everywhere else classes_of(paths)
        for split, paths in splits.items()
    }
    names = sorted({name for labels in classes.values() for name in labels or ()})  # the same in all splits
    tables = {}
    for split, paths in splits.items():
        columns: dict[str, Any] = {"image": paths}
        features: dict[str, Any] = {"image": datasets.Value("string")}
        labels = classes[split]
        if labels is not None:
            number = {name: index for index, name in enumerate(names)}
            columns["label"], features["label"] = [number[name] for name in labels], datasets.ClassLabel(names=names)
        elif any("/" in path for path in paths) and len({path.count("/") for path in paths}) > 1:
            remarks.append("the folders are not taken for classes, since images lie at different depths")
        tables[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    as_classes = [name for name in names if name in ("train", "test", "val", "validation")]
    if as_classes and len(splits) == 1:
        remarks.append(f"{' and '.join(as_classes)}, among other folders, is taken for a class and not for a split")
    return tables, remarks


def _described_tables(config: DataConfig, found: FolderOfImages) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Tables of the metadata files, whose column ``file_name`` says which image a row is of."""
    by_split = splits_of([*found.images])
    split_of = {path: split for split, paths in by_split.items() for path in paths}
    parts: dict[str, list[pa.Table]] = {}
    described = set[str]()
    for file in found.metadata:
        table = _read_metadata(config, found.path / file)
        below = PurePosixPath(file).parent
        paths = [(below / str(name)).as_posix() for name in table["file_name"].to_pylist()]
        if outside := next((path for path in paths if path.startswith("/") or ".." in path.split("/")), None):
            raise _refusal(config, f"{shown(file)} names {shown(outside)!r}, which is not in its folder")
        described.update(paths)
        names = [name for name in table.column_names if name not in ("file_name", "image")]
        table = table.select(names).add_column(0, "image", pa.array(paths, pa.string()))
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
        raise _refusal(config, f"{', '.join(found.metadata)} do not go together: {_one_line(error)}") from error
    left = len(found.images.keys() - described)
    return tables, [f"not read: {left} image(s) that {', '.join(found.metadata)} does not name"] if left else []


def _read_metadata(config: DataConfig, file: Path) -> pa.Table:
    try:
        if file.suffix == ".csv":
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(file, parse_options=options)
        else:
            table = pyarrow.json.read_json(file) if file.suffix == ".jsonl" else pyarrow.parquet.read_table(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _refusal(config, f"{shown(file)} cannot be read: {_one_line(error)}") from error
    if "file_name" not in table.column_names or not len(table):
        raise _refusal(config, f"{shown(file)} has no column file_name with rows, only {table.column_names}")
    return table


def _by_datasets(config: DataConfig, show_progress: bool) -> Loaded:
    """Whatever else `load_dataset` reads."""
    spec: dict[str, Any] = {"path": config.name, "name": config.config, "revision": config.revision}
    files: list[Path] = []
    if config.name == "digits":
        spec |= {"path": "parquet", "data_files": {part: str(DIGITS / f"{part}.parquet") for part in ("train", "test")}}
    elif config.name.endswith(".parquet"):
        # Under the name that the split has without its slice, so that any split does.
        spec |= {"path": "parquet", "data_files": {re.split(r"[\[+]", config.split)[0]: config.name}}
        files = sorted(Path(path) for path in _matches(config.name))
    elif Path(config.name).is_dir():
        files = sorted(path for path in Path(config.name).rglob("*") if path.is_file())
    state = _hash([state_of(path) for path in files])[:16] if files else ""
    if state:  # datasets knows a changed file by its time alone, which can be the same
        spec["cache_dir"] = str(datasets.config.HF_DATASETS_CACHE / "local" / state)
    try:
        if config.streaming:
            builder = datasets.load_dataset_builder(**spec)
            stream = builder.as_streaming_dataset(split=config.split)
            before = _state_of_files(builder.config.data_files, config)
            source = _hash([before, content_of(files, show_progress)]) if files else before
            return Loaded(stream, source, _folder(config), source_before=lambda: before)
        dataset = datasets.load_dataset(split=config.split, **spec)
        return Loaded(dataset, f"{dataset._fingerprint}{state}", _folder(config))
    except Exception as error:  # datasets' builders raise almost anything at files that they do not expect
        # datasets' own errors for broken files hold the reason only in their cause; those of the Hub say it better.
        is_of_the_hub = isinstance(error, datasets.exceptions.DatasetNotFoundError)
        root = error if is_of_the_hub else error.__cause__ or error
        if place := _unwritable(root):
            raise ValueError(
                f"the data set {config.name!r} cannot be kept under {place} ({_one_line(root)}); set HF_HOME (or "
                "HF_DATASETS_CACHE) to a folder where there is room and writing is allowed"
            ) from error
        hint = "a stream has no slices, so data.split must be a plain name" if config.streaming else ""
        raise _refusal(config, _one_line(root).rstrip("."), hint) from error


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    start = next((parent for parent in path.parents if "*" not in str(parent)), Path())
    return [path] if path.is_file() else list(start.glob(str(path.relative_to(start)))) if "*" in pattern else []


def _folder(config: DataConfig) -> Path:
    path = Path(config.name)
    return path if path.is_dir() else path.parent if path.is_file() else Path()


def _unwritable(error: BaseException) -> Path | None:
    """The folder of the Hugging Face cache where something could not be written."""
    kinds = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT, errno.EEXIST)
    if not isinstance(error, OSError) or error.errno not in kinds:
        return None
    caches = (Path(HF_HOME), Path(datasets.config.HF_DATASETS_CACHE))
    place = Path(str(error.filename or ""))
    is_below = any(place.is_relative_to(cache) or cache.is_relative_to(place) for cache in caches)
    return caches[1] if error.errno == errno.ENOSPC or (error.filename and is_below) else None


def _state_of_files(data_files: Any, config: DataConfig) -> str:
    """Hash of the names and sizes of local files (times differ from copy to copy) and the revision of remote ones."""
    state: list[Any] = [config.config, config.split]
    for split, files in (data_files or {}).items():
        for file, origin in zip(files, files.origin_metadata, strict=True):
            path = Path(file)
            state.append([str(split), path.name, path.stat().st_size if path.exists() else origin])
    return _hash(state)


def _source_before(config: DataConfig, folder: Path, rows: list[dict[str, Any]]) -> str | None:
    """What stood for a streamed folder before its content did; None where datasets would read other images in it."""
    try:
        data_files = datasets.load_dataset_builder(str(folder)).config.data_files
    except Exception:  # it reads no such folder
        return None
    theirs = Counter(str(file) for file in data_files.get(config.split, []) if Path(file).suffix.lower() in ENDINGS)
    ours = Counter(str(folder.resolve() / row["image"]) for row in rows)
    return _state_of_files(data_files, config) if theirs == ours else None


def _refusal(config: DataConfig, reason: str, hint: str = "") -> ValueError:
    return ValueError(
        f"split {config.split!r} of the data set {shown(config.name)!r} cannot be loaded: {reason} (see data.name: a "
        f"file, a folder or a Hub id, with a token in HF_TOKEN where it is private or gated; data.config, data.split "
        f"and data.revision{f'; {hint}' if hint else ''})"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
