"""Files and folders that are there whole or not at all, and what tells a damaged one: hashes.

What is not complete yet, or being removed, has a name of the form ``.NAME.partial`` or ``.NAME.removed`` beside the one
that it will get or had; what waits to be pushed is in ``.push-NAME``. A process that is killed leaves these there;
`remove_temporaries` clears them away.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

PARTIAL, REMOVED, STAGED = ".partial", ".removed", ".push-"

LOCK = ".lock"
"""In a folder that is being written; `ddpm_hf.lock` says by whom."""

SEAL = "xxh3_128"
"""The key of a JSON object under which the hash of all its other entries stands."""
HASHES = "hashes.json"
"""The file of a folder that holds the hashes of files beside it."""

# What systems say that cannot sync folders (Windows does not even open one). There the rename alone has to do.
_NO_SYNC_OF_FOLDERS = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.EPERM}


class WriteError(OSError):
    """A file or folder cannot be written. As a sentence it names it, which the system's own errors often do not."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


@contextmanager
def written_whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary name, at which the context writes a file or a folder. At its end that becomes ``path``.

    It replaces what has the name ``path``. Where the context raises, that stays as it was and the temporary file or
    folder is removed. Missing folders above ``path`` are made.

    Args:
        path: The file or folder to write.
        shared: Several processes may write ``path`` at a time, as in a cache. Each then writes a file of its own, and
            the last one to finish stays.

    Raises:
        WriteError: the disk is full, say, or there is no permission.
    """
    temporary = temporary_name(path, shared)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete(temporary)  # left by a process that was killed
        yield temporary
        if temporary.is_dir():
            replace_folder(temporary, path)
        else:
            temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to report
            _delete(temporary)
        if isinstance(error, OSError) and error.errno is not None and _is_of(error, temporary):
            raise WriteError(error.errno, error.strerror, str(path)) from error
        raise


def temporary_name(path: Path, shared: bool = False) -> Path:
    """The name under which `written_whole` writes ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}" if shared else f".{path.name}{PARTIAL}")


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a finished folder its name; an earlier one of that name is removed."""
    earlier = _set_aside(path) if path.exists() else None
    temporary.rename(path)
    if earlier is not None:
        shutil.rmtree(earlier)


def remove(folder: Path) -> None:
    """Remove a folder under a temporary name, so that a kill in between leaves no half of one under its own name."""
    shutil.rmtree(_set_aside(folder))


def is_temporary(path: Path) -> bool:
    """Whether ``path``, or a folder in it, is one that is not complete, being removed, or waiting to be pushed."""
    return any(
        (part.startswith(".") and part.endswith((PARTIAL, REMOVED)) and part not in (PARTIAL, REMOVED))
        or (part.startswith(STAGED) and part != STAGED)
        for part in path.parts
    )


def remove_temporaries(*folders: Path, older_than: float = 0) -> None:
    """Remove what killed processes left directly in these folders.

    Args:
        folders: Where no process may be writing.
        older_than: Seconds since the last change; where processes may be writing, more than any write takes.
    """
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_temporary(Path(path.name)):
                with suppress(FileNotFoundError):  # finished, or removed by another process
                    if time.time() - path.stat().st_mtime >= older_than:
                        _delete(path)


def sync(path: Path) -> None:
    """Have the content of a file reach the disk, or the list of names in a folder where the system allows it.

    Raises:
        OSError: the disk is full or fails.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs what may be written
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in _NO_SYNC_OF_FOLDERS):
            raise


def sync_tree(folder: Path) -> None:
    """Have all that is in a folder reach the disk, so that a rename of it cannot come before its content."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def check_writable(what: str, path: Path) -> None:
    """See that a file can be written, missing folders above it included, without making anything.

    Args:
        what: What names it, such as an option.
        path: The file.

    Raises:
        ValueError: a folder has its name, what should be a folder above it is none, or it lets nobody write.
    """
    if path.is_dir():
        raise ValueError(f"{what} {path} is a folder and must be a file")
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), Path("/"))
    if not above.is_dir():
        raise ValueError(f"{what} {path} cannot be written, as {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{what} {path} cannot be written: there is no permission to write into {above}")


def write_text(path: Path, text: str) -> None:
    """Write a text whole, in UTF-8."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, remedy: str = "restore it") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds none; the sentence ends with the remedy.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; {remedy}")
    return content


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(path: Path) -> str:
    """XXH3 of 128 bits of a file's content, in hexadecimal digits.

    It tells a damaged file at the speed of memory; against forgery there is SHA-256.
    """
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(2**17))  # the same memory each time, and little enough for the processor's cache
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the hash of its entries, for `is_intact`; an earlier hash is replaced."""
    return {**content, SEAL: _hash_of_entries(content)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether the entries of a sealed JSON object are those that were sealed; of one without a seal, True."""
    return SEAL not in content or content[SEAL] == _hash_of_entries(content)


def write_hashes(folder: Path, *patterns: str) -> None:
    """Keep the hashes of the files in a folder that match, in the folder."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    write_json(folder / HASHES, {path.relative_to(folder).as_posix(): hash_of(path) for path in paths})


def check_hashes(folder: Path) -> None:
    """Compare the files of a folder with the hashes kept in it; where there are none, nothing is compared.

    Raises:
        ValueError: a file is damaged or another one.
    """
    path = folder / HASHES
    if not path.is_file():
        return
    remedy = f"if it was replaced on purpose, remove {path}"
    try:
        hashes = json.loads(path.read_bytes())
        files = [(folder / name, digest) for name, digest in hashes.items() if ".." not in Path(name).parts]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is no list of hashes; restore it, or remove it") from None
    for file, digest in files:
        if file.is_file() and hash_of(file) != digest:
            raise ValueError(f"{file} is damaged: its hash is not the one kept in {HASHES}; restore it, or {remedy}")


def _hash_of_entries(content: Mapping[str, Any]) -> str:
    entries = {key: value for key, value in content.items() if key != SEAL}
    return xxhash.xxh3_128_hexdigest(json.dumps(entries, sort_keys=True).encode())


def _is_of(error: OSError, temporary: Path) -> bool:
    """Whether an error came of writing at the temporary name, rather than of reading what goes there."""
    if not isinstance(error.filename, str):  # of a write, to a file that was open
        return True
    named = Path(error.filename)
    return temporary == named or temporary in named.parents or named in temporary.parents


def _set_aside(folder: Path) -> Path:
    """The folder under a temporary name; what a killed process left under that name is deleted."""
    removed = folder.with_name(f".{folder.name}{REMOVED}")
    _delete(removed)
    return folder.rename(removed)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
