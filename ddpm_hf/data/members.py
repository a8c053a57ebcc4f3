"""Images inside files that hold many: archives, arrays of numpy, and TIFFs of several pages.

Each has a name of its own: the path of the file, "::", and its path, name or number in there, such as
``photos.zip::cat/1.png``, ``cells.tif::3`` or ``set.npz::images::12``.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ddpm_hf.data import tiff_pages
from ddpm_hf.data.archives import ENDINGS, Archive, Stretch, Tar, is_archive, open_archive
from ddpm_hf.data.array_sets import Arrays, arrays_of_files, arrays_of_one_set
from ddpm_hf.data.arrays import ArrayFile, Head, Stack, heads_of, whole_type
from ddpm_hf.data.contents import remembered
from ddpm_hf.data.decoding import WORKERS
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.data.folders import FolderOfImages, shown, state_of
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.shards import labels_of_shards

Label = int | str | None


class Members:
    """Opens what files hold, and reads an image by its name.

    Args:
        folder: Where the files are.
        config: For ``layout``, ``image_column`` and ``label_column``.

    Attributes:
        labels: What files hold of them, by the names of images.
        notes: What is to be said at the start of a run.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self._folder, self._config = folder, config
        self._archives: dict[str, Archive] = {}
        self._stacks: dict[str, Stack] = {}
        self._pages: dict[str, list[tiff_pages.Page]] = {}
        self._holders: set[str] = set()  # of these the files themselves, below the folder
        self.labels: dict[str, Label] = {}
        self.notes: list[str] = []

    def fetch(self, encoded: Any) -> Any:
        """What `ddpm_hf.data.decoding.decode` takes, of an image's name.

        Raises:
            CorruptImageError: it is damaged, or not there.
            OSError: the file that holds it cannot be read.
        """
        name = encoded.get("path") if isinstance(encoded, dict) else encoded
        if not isinstance(name, str):
            return encoded
        if name in self._stacks:
            return self._stacks[name].read("")
        for head, rest in _cuts(name):
            if head in self._stacks:
                return self._stacks[head].read(rest)
            if head in self._pages:
                with _reader(self.content(head)) as read:
                    page = tiff_pages.page_alone(read, self._pages[head][int(rest)])
                return {"bytes": page, "path": None}
            if head in self._archives:
                return {"bytes": self._archives[head].read(rest), "path": None}
        return encoded

    @property
    def has_arrays(self) -> bool:
        """Whether some images are arrays."""
        return bool(self._stacks)

    @property
    def has_pages(self) -> bool:
        """Whether some TIFF has several pages."""
        return bool(self._pages)

    def pages(self, path: str) -> list[str]:
        """Names of the pages of a TIFF; of any other image its own."""
        return [f"{path}::{index}" for index in range(len(self._pages[path]))] if path in self._pages else [path]

    def open(self, found: FolderOfImages, is_one_file: bool) -> FolderOfImages:
        """The images of a folder: those of archives where there are neither images nor arrays, and of these likewise.

        Args:
            found: The files; without tables.
            is_one_file: Whether the data set is one file.

        Raises:
            ValueError: a file is damaged, or it is not clear what is meant; the message is the reason.
        """
        if not found.images and not found.arrays and any(map(is_archive, found.archives)):
            opened = self._open_archives(found)
            if is_one_file and not opened.images and not opened.arrays:
                tables = [f"{len(opened.tables)} table(s)"] if opened.tables else []
                there = f", only {said}" if (said := opened.not_read(*tables)) else ""
                raise ValueError(f"the archive holds no images{there}")
            found = opened if opened.images or opened.arrays else found
        if found.arrays and not found.images:
            self._open_arrays(found, is_one_file)
        self._open_pages(found)
        return found

    def content(self, path: str) -> bytes | Stretch:
        """A file's bytes, or where they lie."""
        for head, rest in _cuts(path):
            if head in self._archives:
                archive = self._archives[head]
                return archive.stretch(rest) or archive.read(rest)
        file = self._folder / path
        return Stretch(file, 0, file.stat().st_size)

    def file_of(self, image: str) -> Path:
        """The file that holds an image."""
        return self._folder / next((head for head, _ in [*_cuts(image)][::-1] if head in self._holders), image)

    def _open_archives(self, found: FolderOfImages) -> FolderOfImages:
        """What the archives of a folder hold, each taken for a folder of its name; parts of one for the same folder."""
        opened = FolderOfImages(found.path, others=found.others.copy(), tables=[*found.tables])
        paths = [path for path in found.archives if is_archive(path)]
        opened.archives = [path for path in found.archives if not is_archive(path)]
        for path, folder in _folders_of(paths).items():
            archive = self._archives[path] = open_archive(found.path / path)
            self._holders.add(path)
            inside = FolderOfImages(found.path, others=archive.others.copy())
            state = state_of(found.path / path)
            for name in sorted(archive.names):
                if any(part.startswith((".", "__")) for part in name.split("/")):
                    inside.others["hidden"] += 1
                else:
                    inside.put(name, state)
            if isinstance(archive, Tar):
                labels = labels_of_shards(archive, inside, self._config)
                self.labels |= {f"{path}::{name}": label for name, label in labels.items()}
            opened.images |= {f"{path}::{name}": state for name in inside.images}
            opened.metadata |= {f"{path}::{name}": state for name in inside.metadata}
            opened.tables += [f"{path}::{name}" for name in inside.tables]
            opened.arrays += [f"{path}::{name}" for name in inside.arrays]
            opened.archives += [f"{path}::{name}" for name in inside.archives]
            opened.others += inside.others
            opened.stands_for[path] = folder
        return opened

    def _open_pages(self, found: FolderOfImages) -> None:
        """Put in place of each TIFF of several pages these pages, each an image."""
        paths = [path for path in found.images if path.lower().endswith(tiff_pages.ENDINGS) and found.images[path]]
        files = 0
        for path, (places, beside) in zip(paths, self._looked_at("tiff_pages", paths, self._look_at_tiff)):
            found.others["copy or mask in a TIFF"] += beside
            if len(places) > 1 or (places and beside):
                self._pages[path] = [tiff_pages.Page(*place) for place in places]
                self._holders.add(path)
                files += len(places) > 1
        found.images = {page: state for path, state in found.images.items() for page in self.pages(path)}
        if files:
            self.notes.append(f"{sum(map(len, self._pages.values()))} images are pages of {files} TIFF file(s)")

    def _open_arrays(self, found: FolderOfImages, is_one_file: bool) -> None:
        """Put the images of files of numpy in their place.

        Raises:
            ValueError: it is not clear which arrays are images, or which of their axes is which.
        """
        paths = found.arrays
        looked = self._looked_at("arrays", paths, lambda path: heads_of(path, self._verified(path)))
        heads = {path: [Head.from_json(head) for head in of_file] for path, of_file in zip(paths, looked)}
        is_spread = all(path.lower().endswith(".npy") for path in paths) and any(
            head.labels is not None for of_file in heads.values() for head in of_file
        )
        sets = arrays_of_one_set if len(paths) == 1 or is_spread else arrays_of_files
        for arrays in sets(heads, self._config, found):
            self._add(arrays, found)
        found.arrays = []

    def _add(self, arrays: Arrays, found: FolderOfImages) -> None:
        path, head = arrays.path, arrays.head
        self._holders.add(path)
        content = self.content(path) if head.offset is not None else None
        file = ArrayFile(head, path, content if isinstance(content, Stretch) else lambda: self._bytes(path))
        name = f"{path}::{head.name}" if head.name else path
        self._stacks[name] = Stack(file, arrays.layout, arrays.is_stack, whole_type(self._config))
        images = [f"{name}::{index}" for index in range(head.shape[0])] if arrays.is_stack else [name]
        state = state_of(self.file_of(images[0]))
        found.images |= dict.fromkeys(images, state)
        if arrays.split is not None:
            found.stands_for[name] = arrays.split
        if arrays.labels is not None:
            self.labels |= dict(zip(images, arrays.labels, strict=True))

    def _bytes(self, path: str) -> bytes:
        content = self.content(path)
        return content if isinstance(content, bytes) else content.read()

    def _look_at_tiff(self, path: str) -> tuple[list[tiff_pages.Page], int]:
        with _reader(self._verified(path)) as read:
            return tiff_pages.pages_of(read)

    def _verified(self, path: str) -> bytes | Stretch:
        """As `content`, once it is known to be what was packed."""
        for head, rest in _cuts(path):
            if head in self._archives:
                self._archives[head].verify(rest)
        return self.content(path)

    def _looked_at(self, kind: str, paths: list[str], look: Callable[[str], Any]) -> list[Any]:
        """What each of the files is like, for as long as they (or the archives that hold them) do not change."""
        by_file: dict[Path, list[str]] = {}
        for path in paths:
            head = next((head for head, _ in _cuts(path) if head in self._archives), path)
            by_file.setdefault(self._folder / head, []).append(path)

        def look_at(path: str) -> Any:
            try:
                return look(path)
            except (CorruptImageError, OSError) as error:
                raise ValueError(
                    f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}"
                ) from error

        def read() -> list[Any]:
            with ThreadPoolExecutor(WORKERS) as pool:
                return [*pool.map(lambda inside: [look_at(path) for path in inside], by_file.values())]

        by_path = {
            path: result
            for inside, results in zip(by_file.values(), remembered(kind, [*by_file], read), strict=True)
            for path, result in zip(inside, results, strict=True)
        }
        return [by_path[path] for path in paths]


def _cuts(image: str) -> Iterator[tuple[str, str]]:
    """An image's name, cut in two at each "::", the last one first."""
    for found in reversed(list(re.finditer("::", image))):
        yield image[: found.start()], image[found.end() :]


def _folders_of(archives: list[str]) -> dict[str, str]:
    """The folder that each archive stands for: of its name, which parts of one (with other numbers) have in common.

    An only archive, or the only parts of one, stand for the folder that they lie in.
    """
    names: dict[str, str] = {}
    for path in archives:
        name = PurePosixPath(path).name
        stem = name[: -len(next(ending for ending in sorted(ENDINGS, key=len)[::-1] if name.lower().endswith(ending)))]
        is_part = len([other for other in archives if _unnumbered(other) == _unnumbered(path)]) > 1
        names[path] = (PurePosixPath(path).parent / (_unnumbered(stem).strip(" _.-") if is_part else stem)).as_posix()
    return dict.fromkeys(names, "") if len({*names.values()}) == 1 else names


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "", name)


@contextmanager
def _reader(content: bytes | Stretch) -> Iterator[tiff_pages.Read]:
    """Reads parts of a file."""
    if isinstance(content, bytes):
        yield lambda offset, size: content[offset : offset + size]
        return
    with content.path.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            if offset >= content.size:
                return b""
            file.seek(content.offset + offset)
            return file.read(min(size, content.size - offset))

        yield read
