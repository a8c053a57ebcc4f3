"""From data.name to a data set of :mod:`datasets`: a folder of images, tables, what save_to_disk left, or a Hub id."""

import errno
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import DatasetCard
from huggingface_hub.constants import HF_HOME

from ddpm_hf.data import tiff_pages
from ddpm_hf.data.archives import is_archive
from ddpm_hf.data.contents import content_of
from ddpm_hf.data.folders import ARCHIVES, ARRAYS, ENDINGS, TABLES, FolderOfImages, list_folder, shown, state_of
from ddpm_hf.data.image_tables import tables_of
from ddpm_hf.data.members import Members
from ddpm_hf.data.settings import DataConfig

DIGITS = Path(__file__).parents[1] / "assets" / "digits"
# What a data set says of itself.
_CARDS = ("README.md", "dataset_infos.json")


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
        fetch: Turns what a row holds into what `ddpm_hf.data.decoding.decode` takes; None for the same.
        has_arrays: Whether ``fetch`` gives arrays.
        has_labels: False where the column of labels only says again which split an image is of.
    """

    dataset: Any
    source: str
    folder: Path = Path()
    remark: str = ""
    source_before: Callable[[], str | None] = lambda: None
    advises: bool = True
    fetch: Callable[[Any], Any] | None = None
    has_arrays: bool = False
    has_labels: bool = True


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
        return _of_file(config, path, show_progress)
    looks_local = config.name.startswith((".", "/", "~", "\\")) or config.name.count("/") > 1
    if not is_file and "*" not in config.name and (looks_local or ending in {*ENDINGS, *ARCHIVES, *ARRAYS, *TABLES}):
        raise _refusal(config, "there is no such file or folder")
    return _by_datasets(config, show_progress)


def _of_file(config: DataConfig, path: Path, show_progress: bool) -> Loaded:
    """A file that holds many images."""
    found, ending = FolderOfImages(path.parent), path.suffix.lower()
    found.put(path.name, state_of(path))
    if found.arrays or is_archive(path.name) or ending in tiff_pages.ENDINGS:
        loaded = _of_found(config, found, show_progress, is_one_file=True)
        if loaded is not None:
            return loaded
    raise _refusal(config, _what_it_is(ending))


def _what_it_is(ending: str) -> str:
    if ending in ARCHIVES:
        return f"it is a packed file ({ending}) of a kind that is not read; unpack it, and give the folder"
    if ending in ENDINGS:
        return "it is one image; give the folder"
    return (
        f"it is a file that ends in {ending or 'nothing'!r}; give a folder of images, a zip or tar of them, .npy, .npz "
        "or parquet"
    )


def _of_folder(config: DataConfig, path: Path, show_progress: bool) -> Loaded:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_to_disk(config, path)
    if config.config is not None or _is_described(path):
        return _by_datasets(config, show_progress)
    found = list_folder(path)
    loaded = _of_found(config, found, show_progress)
    if loaded is not None:
        return loaded
    is_of_tables = found.tables or found.archives or {".csv", ".json", ".jsonl"} & found.others.keys()
    if not is_of_tables and not found.metadata:
        there = f", only {found.not_read()}" if found.not_read() else ""
        raise _refusal(config, f"the folder holds no images{there}")
    return _by_datasets(config, show_progress)


def _of_found(
    config: DataConfig, found: FolderOfImages, show_progress: bool, is_one_file: bool = False
) -> Loaded | None:
    """Images, or what files hold; None where there are none."""
    members = Members(found.path, config)
    given = [*found.images]
    try:
        if not found.tables:
            found = members.open(found, is_one_file)
    except ValueError as error:
        raise _refusal(config, str(error)) from error
    if found.images and found.tables:
        raise _refusal(
            config,
            f"it holds {len(found.images)} images and {len(found.tables)} table(s) ({shown(found.tables[0])}), and "
            "which of them is meant is not clear; give the table itself, or move it out",
        )
    is_one_image = is_one_file and [*found.images] == given
    return _of_images(config, found, members, show_progress) if found.images and not is_one_image else None


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
    others = [f"{len(part)} image(s) of the split {name}" for name, part in parts.items() if name not in config.split]
    remark = f"not read: {', '.join(others)}" if others else ""
    if config.streaming:
        stream = dataset.to_iterable_dataset()
        return Loaded(stream, _hash([config.split, content_of(files)]), remark=remark)
    return Loaded(dataset, _hash([config.split, *map(state_of, files)]), remark=remark)


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


def _of_images(config: DataConfig, found: FolderOfImages, members: Members, show_progress: bool) -> Loaded:
    """The images of a folder, and those that its files hold."""
    try:
        tables, remarks, labels_are_splits = tables_of(found, members, config)
    except ValueError as error:
        raise _refusal(config, str(error)) from error
    dataset = _cut(config, {split: len(table) for split, table in tables.items()}, lambda name: tables[name])
    others = {split: len(table) for split, table in tables.items() if split not in config.split}
    in_others = [f"{count} image(s) of the split {split}" for split, count in others.items()]
    not_read = found.not_read(*in_others)
    remark = "; ".join([*([f"not read: {not_read}"] if not_read else []), *members.notes, *remarks])
    kinds = {name: str(kind) for name, kind in dataset.features.items()}
    rows, column = dataset.to_list(), dataset.column_names[0]
    loaded = Loaded(
        *(dataset, "", found.path, remark),
        fetch=members.fetch,
        has_arrays=members.has_arrays,
        has_labels=not labels_are_splits,
    )
    if not config.streaming:
        states = [found.images.get(row[column], ()) for row in rows]
        return replace(loaded, source=_hash([kinds, rows, states]))
    paths = dict.fromkeys(members.file_of(image) for image, state in found.images.items() if state)
    source = _hash([config.split, kinds, rows, content_of([*paths], show_progress)])
    # As datasets streams a folder, so that a run that began so goes on with the same samples.
    features = datasets.Features(dataset.features)
    stream = datasets.IterableDataset.from_generator(_each, gen_kwargs={"rows": tuple(rows)}, features=features)
    before = (lambda: None) if column != "image" else lambda: _source_before(config, found.path, rows)
    return replace(loaded, dataset=stream, source=source, source_before=before)


def _each(rows: tuple[dict[str, Any], ...]) -> Iterator[dict[str, Any]]:
    yield from rows


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
        builder: Any = datasets.load_dataset_builder(**spec) if config.streaming or files else None
        remark = _not_used(config, files, builder.config.data_files) if Path(config.name).is_dir() else ""
        if config.streaming:
            stream = builder.as_streaming_dataset(split=config.split)
            before = _state_of_files(builder.config.data_files, config)
            source = _hash([before, content_of(files, show_progress)]) if files else before
            return Loaded(stream, source, _folder(config), remark, source_before=lambda: before)
        dataset = datasets.load_dataset(split=config.split, **spec)
        return Loaded(dataset, f"{dataset._fingerprint}{state}", _folder(config), remark)
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


def _not_used(config: DataConfig, files: list[Path], data_files: Any) -> str:
    """The files of a folder that are not read, counted; and those of other splits."""
    used = {str(split): {Path(str(path)).resolve() for path in paths} for split, paths in (data_files or {}).items()}
    if not used:
        return ""
    left = Counter[str]()
    for path in files:
        if not any(path.resolve() in paths for paths in used.values()) and path.name not in _CARDS:
            is_hidden = any(part.startswith(".") for part in path.relative_to(config.name).parts)
            left["hidden" if is_hidden else path.suffix.lower() or "without an ending"] += 1
    others = [f"{len(paths)} file(s) of the split {name}" for name, paths in used.items() if name not in config.split]
    counted = ", ".join([*others, *(f"{count} {kind}" for kind, count in sorted(left.items()))])
    return f"not read: {counted}" if counted else ""


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
