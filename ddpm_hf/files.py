"""Files and folders that are there whole or not at all, and their hashes. Imports the standard library only.

What is not complete yet, or being removed, has a name of the form ``.NAME.partial`` or ``.NAME.removed`` beside the one
that it will get or had. A process that is killed leaves it there; `remove_temporaries` clears it away.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL, REMOVED = ".partial", ".removed"

# What systems say that cannot sync folders (Windows does not even open one). There the rename alone has to do.
_NO_SYNC_OF_FOLDERS = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.EPERM}


@contextmanager
def written_whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary name, at which the context writes a file or a folder. At its end that becomes ``path``.

    It replaces what has the name ``path``. Where the context raises, that stays as it was and the temporary file or
    folder is removed. Missing folders above ``path`` are made.

    Args:
        path: The file or folder to write.
        shared: Several processes may write ``path`` at a time, as in a cache. Each then writes a file of its own, and
            the last one to finish stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path, shared)
    _delete(temporary)  # left by a process that was killed
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            _delete(temporary)
        raise
    if temporary.is_dir():
        replace_folder(temporary, path)
    else:
        temporary.replace(path)


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
    """Whether ``path``, or a folder in it, is one that is not complete or being removed."""
    return any(
        part.startswith(".") and part.endswith((PARTIAL, REMOVED)) and part not in (PARTIAL, REMOVED)
        for part in path.parts
    )


def remove_temporaries(*folders: Path) -> None:
    """Remove what killed processes left directly in these folders. No process may be writing there."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_temporary(Path(path.name)):
                _delete(path)


def sync(path: Path) -> None:
    """Have the content of a file reach the disk, or the list of names in a folder where the system allows it.

    Raises:
        OSError: the disk is full or fails.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
