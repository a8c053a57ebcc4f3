"""What a folder of images holds: its images, their splits and classes, and all that is not read."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

Image.init()
_NOT_PICTURES = {".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".emf", ".h5", ".hdf", ".grib", ".bufr", ".fit", ".fits"}
ENDINGS = {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN} - _NOT_PICTURES
"""What the names of images end in, in any case."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".parquet", ".arrow")
ARRAYS = (".npy", ".npz")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".tbz", ".tbz2", ".txz")

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}

State = tuple[int, ...]


def state_of(file: Path | os.DirEntry[str]) -> State:
    """Size, times and number of a file, which tell whether it has changed on this machine.

    Systems note each change of a file in its ctime, which no program can set, as it can the time of modification.
    """
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@dataclass
class FolderOfImages:
    """The files of a folder, at any depth, by their paths below it with slashes between, in the order of these.

    Args:
        path: The folder.
        images: Images and their states; a link that leads nowhere has an empty one.
        metadata: Files that describe images, in the form of datasets' imagefolder.
        tables: Parquet and arrow files.
        archives: Packed files.
        arrays: Files of numpy.
        others: How many of each other kind there are.
        stands_for: Names before "::" of images that lie in files, and the folder that each such file is taken for.
    """

    path: Path
    images: dict[str, State] = field(default_factory=dict)
    metadata: dict[str, State] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    stands_for: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, state: State) -> None:
        """A file to where it belongs."""
        name, ending = PurePosixPath(path).name, PurePosixPath(path).suffix.lower()
        if name.startswith((".", "__")):
            self.others["hidden"] += 1
        elif ending in ENDINGS:
            self.images[path] = state
        elif name in METADATA:
            self.metadata[path] = state
        elif ending in TABLES:
            self.tables.append(path)
        elif ending in ARCHIVES:
            self.archives.append(path)
        elif ending in ARRAYS:
            self.arrays.append(path)
        else:
            self.others[ending or "without an ending"] += 1

    def place(self, image: str) -> str:
        """Where an image counts as lying: an archive is taken for a folder."""
        for found in reversed(list(re.finditer("::", image))):
            folder = self.stands_for.get(image[: found.start()])
            if folder is not None:
                inside = image[found.end() :]
                return f"{folder}/{inside}" if folder not in ("", ".") else inside
        return image

    def not_read(self, *more: str) -> str:
        """What is left out, counted, such as "3 .txt, 1 hidden"; empty for nothing."""
        files = Counter(PurePosixPath(path).suffix.lower() for path in (*self.archives, *self.arrays))
        kinds = sorted((self.others + files).items())
        return ", ".join([*more, *(f"{count} {kind}{UNREADABLE.get(kind, '')}" for kind, count in kinds)])


UNREADABLE = dict.fromkeys((".heic", ".heif"), " (save as JPEG)")
"""What to do about images of cameras that Pillow does not read."""


def list_folder(folder: Path) -> FolderOfImages:
    """All that a folder holds. Links are followed; names that begin with "." or "__" are hidden.

    Raises:
        ValueError: a folder cannot be read, or a name cannot be handled.
    """
    found = FolderOfImages(folder)
    entries = sorted(_walk(folder, "", frozenset()), key=lambda entry: entry[0])
    for path, entry in entries:
        try:
            state = state_of(entry)
        except OSError:
            state = ()
        if state and not entry.is_file() and not entry.name.startswith((".", "__")):
            found.others["folder in a circle" if entry.is_dir() else "device or pipe"] += 1
        else:
            found.put(path, state)
    return found


def _walk(folder: Path, below: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Paths and entries of files, of hidden folders, and of links to a folder that they lie in."""
    try:
        here = folder.stat()
        above |= {(here.st_dev, here.st_ino)}
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the name {shown(folder / entry.name)} is not UTF-8; rename it") from error
        is_link_up = entry.is_symlink() and entry.is_dir() and _identity(entry) in above
        if entry.is_dir() and not entry.name.startswith((".", "__")) and not is_link_up:
            yield from _walk(folder / entry.name, f"{below}{entry.name}/", above)
        else:
            yield below + entry.name, entry


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat()
    return status.st_dev, status.st_ino


def shown(path: object) -> str:
    """A path for messages, on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(path))


def splits_of(images: list[str], places: list[str] | None = None) -> dict[str, list[str]]:
    """Images by split, as the paths say where they lie (``places``, if these are others).

    Where all images lie in folders that are called like splits, as ``train`` and ``test``, perhaps in a folder of their
    own, these are the splits. In all other cases everything is "train": such a name among others is that of a class.
    """
    parts = [path.split("/") for path in places or images]
    for depth in range(max(map(len, parts), default=0)):
        if any(len(part) == depth + 1 for part in parts):
            break  # images beside the folders
        names = {part[depth] for part in parts}
        splits = {name: split_named(name) for name in names}
        if None not in splits.values() and len(set(splits.values())) == len(names):
            by_split: dict[str, list[str]] = {}
            for image, part in zip(images, parts, strict=True):
                by_split.setdefault(str(splits[part[depth]]), []).append(image)
            return by_split
        if len(names) > 1:
            break
    return {"train": images}


def split_named(name: str) -> str | None:
    """The split that a folder's name stands for, such as "test" for ``test_images``; None for others."""
    words = [word for word in re.split(r"[\W_\d]+", name.lower()) if word]
    found = {_SPLIT_OF[word] for word in (words[:1] + words[-1:]) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def classes_of(paths: list[str]) -> list[str] | None:
    """The class of each image: the folder that it lies in, if all lie equally deep and in at least two folders."""
    names = [path.split("/")[-2] if "/" in path else "" for path in paths]
    is_level = len({path.count("/") for path in paths}) == 1
    return names if is_level and len(set(names)) > 1 else None
