"""Zip and tar files: what they hold, and the bytes of each file in them without unpacking the rest.

Nothing is ever written under a name that an archive gives.
"""

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from ddpm_hf.data.contents import remembered
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.data.folders import shown, state_of
from ddpm_hf.files import written_whole

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
"""Of the names of archives that are read, in any case."""

LARGEST_MEMBER = 2**31
"""Bytes of a file in a zip, unpacked; no image has more."""

_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_NO_MEMBER = "there is no such file in the archive"


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that lie one after the other.

    Args:
        path: The file.
        offset: Where they begin.
        size: How many there are.
    """

    path: Path
    offset: int
    size: int

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """``size`` bytes from ``start`` on, or all that are left; fewer at the end."""
        left = max(0, self.size - start)
        with self.path.open("rb") as file:
            file.seek(self.offset + start)
            return file.read(left if size is None else min(size, left))


class Archive(Protocol):
    """What zip and tar files share.

    Attributes:
        names: Paths of the files in it, in its own order.
        others: How many of each kind are no files.
    """

    names: list[str]
    others: Counter[str]

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            CorruptImageError: it cannot be had.
            OSError: the archive cannot be read.
        """

    def stretch(self, name: str) -> Stretch | None:
        """Where a file's content lies as it is; None where it is compressed."""

    def verify(self, name: str) -> None:
        """See that what `stretch` says has the bytes that were packed, where that can be known.

        Raises:
            CorruptImageError: it has others.
        """


def is_archive(name: str) -> bool:
    """Whether a name ends like an archive that is read here."""
    return name.lower().endswith(ENDINGS)


def open_archive(path: Path) -> Archive:
    """A zip or tar file, as its content says; a compressed tar is first unpacked into a plain one, which is kept.

    Raises:
        ValueError: it is damaged, encrypted, or holds names that lie outside of it.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        return Zip(path) if start.startswith(b"PK") or path.suffix.lower() == ".zip" else Tar(_plain(path, start))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError) as error:
        kind = "zip" if path.suffix.lower() == ".zip" else "tar"
        raise ValueError(
            f"{shown(path.name)} is no whole {kind} file ({_one_line(error)}); fetch it again, or make it again"
        ) from error
    except OSError as error:
        raise ValueError(f"{shown(path.name)} cannot be read: {error.strerror or error}") from error


class Zip:
    """A zip file. Attributes as of `Archive`."""

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, state_of(path)
        self._files: dict[str, zipfile.ZipInfo] = {}
        self.others: Counter[str] = Counter()
        locked = 0
        for info in _opened_zip(path, self._state).infolist():
            # Windows' own packers have written "\" for "/".
            name = _checked(path, info.filename if "/" in info.filename else info.filename.replace("\\", "/"))
            if name is None or info.is_dir() or info.filename.endswith("\\"):
                continue
            if info.external_attr >> 28 == 0o12:
                self.others["link"] += 1
                continue
            locked += info.flag_bits & 1
            self.others["earlier file of the same name"] += name in self._files
            self._files[name] = info
        if locked:
            raise ValueError(
                f"{shown(path.name)} is encrypted ({locked} of its {len(self._files)} files); unpack it with its "
                "password, and give the folder"
            )
        self.names = list(self._files)

    def read(self, name: str) -> bytes:
        """As `Archive.read`."""
        info = self._files.get(name)
        if info is None:
            raise CorruptImageError(_NO_MEMBER)
        if info.file_size > LARGEST_MEMBER:
            raise CorruptImageError(f"it has {info.file_size / 2**30:,.1f} GiB, unpacked; no image does")
        try:
            return _opened_zip(self._path, self._state).read(info)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an offset that no file has
                raise
            raise CorruptImageError("its bytes in the zip file are damaged or unknown (it lies nowhere)") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, lzma.LZMAError) as error:
            raise CorruptImageError(f"its bytes in the zip file are damaged or unknown ({_one_line(error)})") from error

    def stretch(self, name: str) -> Stretch | None:
        """As `Archive.stretch`."""
        info = self._files[name]
        if info.compress_type != zipfile.ZIP_STORED or info.header_offset < 0:
            return None
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)  # the lengths of the name and of more follow at byte 26
        if not header.startswith(b"PK\3\4"):
            return None
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return Stretch(self._path, info.header_offset + 30 + lengths, info.file_size)

    def verify(self, name: str) -> None:
        """See that a file which is read where it lies has the bytes that were packed.

        Raises:
            CorruptImageError: it has others.
        """
        found = self.stretch(name)
        if found is not None:
            total = 0
            with found.path.open("rb") as file:
                file.seek(found.offset)
                for start in range(0, found.size, 2**20):
                    total = zlib.crc32(file.read(min(2**20, found.size - start)), total)
            if total != self._files[name].CRC:
                raise CorruptImageError("its bytes in the zip file are damaged (another checksum)")


@lru_cache(maxsize=64)
def _opened_zip(path: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    """Open for all threads, which it keeps apart by itself; few at a time."""
    return zipfile.ZipFile(path)


class Tar:
    """A tar file that is not compressed. Attributes as of `Archive`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found: dict[str, Any] = remembered("tar", [path], lambda: [_scan(path)])[0]
        self._files: dict[str, tuple[int, int]] = {name: (offset, size) for name, offset, size in found["files"]}
        self.names = list(self._files)
        self.others: Counter[str] = Counter(found["others"])

    def read(self, name: str) -> bytes:
        """As `Archive.read`."""
        if name not in self._files:
            raise CorruptImageError(_NO_MEMBER)
        return self.stretch(name).read()

    def stretch(self, name: str) -> Stretch:
        """As `Archive.stretch`."""
        return Stretch(self._path, *self._files[name])

    def verify(self, name: str) -> None:
        """As `Archive.verify`. Tar files hold no checksums of content."""


def _scan(path: Path) -> dict[str, Any]:
    """Name, offset and size of each file of a tar, and how many of each kind are no files."""
    files, links, others = dict[str, tuple[int, int]](), dict[str, str](), Counter[str]()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = _checked(path, member.name)
            if name is None or member.isdir():
                continue
            if member.islnk() or member.issym():
                links[name] = member.linkname if member.islnk() else str(PurePosixPath(name).parent / member.linkname)
            elif not member.isreg() or member.issparse():
                others["sparse file" if member.issparse() else "device or pipe"] += 1
            else:
                others["earlier file of the same name"] += name in files
                files[name] = (member.offset_data, member.size)
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(2**20)
        if rest.count(0, 0, 512) < 512:  # tarfile takes all of these for an end
            raise tarfile.ReadError(f"it is cut off or damaged at byte {end:,}")
        while rest:
            if rest.count(0) != len(rest):
                raise ValueError(
                    f"{shown(path.name)} goes on after its end, as tar files that were put together with cat do; give "
                    "them apart, or put them together with tar -A"
                )
            rest = file.read(2**20)
    for name, target in links.items():
        target = _followed(target, links)
        if target in files:
            files[name] = files[target]
        else:
            others["link to nowhere"] += 1
    return {"files": [[name, *place] for name, place in files.items()], "others": +others}


def _followed(target: str, links: dict[str, str]) -> str:
    """Where a link leads, through others."""
    for _ in range(40):
        parts: list[str] = []
        for part in PurePosixPath(target).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        target = "/".join(parts)
        if target not in links:
            break
        target = links[target]
    return target


def _checked(path: Path, name: str) -> str | None:
    """A member's path with single slashes, below the archive; None for the archive's own folder.

    Raises:
        ValueError: it lies elsewhere, or is no text.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{shown(path.name)} holds the name {shown(name)}, which is not UTF-8; rename it") from error
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:[/\\]", name):
        raise ValueError(
            f"{shown(path.name)} holds the name {shown(name)!r}, which would lie outside of it; make it again, with "
            "names below its folder"
        )
    plain = PurePosixPath(name).as_posix()
    return None if plain == "." else plain


def _plain(path: Path, start: bytes) -> Path:
    """A tar as it is, or the plain one that a compressed one was unpacked into."""
    opener = next((opener for magic, opener in _UNPACKERS.items() if start.startswith(magic)), None)
    if opener is None:
        return path
    key = hashlib.sha256(json.dumps([str(path.absolute()), state_of(path)]).encode()).hexdigest()
    kept = Path(HF_HOME) / "ddpm_hf" / "unpacked" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', path.name)[:40]}-{key[:16]}.tar"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_name(f"{kept.name}.lock")):
        if not kept.exists():
            with written_whole(kept) as temporary, _named(path), opener(path) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file, 2**20)
    return kept


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of unpackers, some of which are OSErrors without a number, as one kind."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise tarfile.ReadError(_one_line(error)) from error
    except OSError as error:
        if error.errno is None:
            raise tarfile.ReadError(_one_line(error)) from error
        raise


def stream_of(content: bytes | Stretch) -> IO[bytes]:
    """A file object over bytes, or over a stretch of a file (all of which is read)."""
    return io.BytesIO(content if isinstance(content, bytes) else content.read())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
