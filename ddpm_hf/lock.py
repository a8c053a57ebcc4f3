"""One writer for each folder: its main process holds a lock, which says who it is.

The kernel frees the lock when the process ends, however that happens. Where there are no locks, as on Windows, what the
file says of its process decides.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator

from ddpm_hf.files import LOCK
from ddpm_hf.launch import decided_by_main

fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None

# What file systems say that know no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def only_writer(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Within the context no other run or command writes into ``folder``. All processes of this one enter it together.

    The folder is made if it is not there; if nothing has been put there at the end, it is removed again.

    Raises:
        ValueError: another process is writing there, or the folder cannot be one; on all processes.
    """
    held: list[FolderLock] = []

    def take() -> None:
        held.append(FolderLock(folder))

    decided_by_main(accelerator, take)
    try:
        yield
    finally:
        for lock in held:
            lock.release()


class FolderLock:
    """The lock of a folder, held until it is released or the process ends.

    Args:
        folder: Made if it is not there.

    Raises:
        ValueError: another process holds it, or ``folder`` is something else than a folder.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder)
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._path = folder / LOCK
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = self._locked(folder)
        content = json.dumps({"host": socket.gethostname(), **_identity(os.getpid())}) + "\n"
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, content.encode())

    def release(self) -> None:
        """Let others write, and leave no trace."""
        if self._descriptor < 0:
            return
        with suppress(OSError):  # a folder that somebody has removed, or a disk that fails, is not news of the lock's
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1
        if fcntl is None:  # Windows removes no file that is open, and here no one can lock it in between
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        for path in self._made:
            try:
                path.rmdir()
            except OSError:  # it holds something, as it should
                break

    def _locked(self, folder: Path) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _take(descriptor)
            except BlockingIOError:
                holder = _read(descriptor)
                os.close(descriptor)
                raise ValueError(_refusal(folder, holder)) from None
            except OSError as error:
                holder = _read(descriptor)
                if error.errno in _NO_LOCKS and not _may_live(holder):
                    return descriptor
                os.close(descriptor)
                if error.errno not in _NO_LOCKS:
                    raise
                remedy = f"; if that process is gone, remove {self._path}"
                raise ValueError(_refusal(folder, holder) + remedy) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    return descriptor
            os.close(descriptor)  # its holder removed it between our opening and our locking it


def _take(descriptor: int) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: another process has.
        OSError: it cannot be locked here.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no locks on this system")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_folder(folder: Path) -> None:
    """Refuse a path at which there can be no folder.

    Raises:
        ValueError: it, or a path above it, is a file or a link to nothing.
    """
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{path} is a link to {path.readlink()}, where there is nothing; remove it or name another"
            )
        if path.exists():
            raise ValueError(f"{folder} cannot be a folder, because {path} is a file; name another place")


def _identity(pid: int) -> dict[str, Any]:
    """A process by its number and the time it was started, since numbers are used again."""
    return {"pid": pid, "started": round(psutil.Process(pid).create_time(), 1)}


def _read(descriptor: int) -> dict[str, Any]:
    """Who wrote the lock; empty where it cannot be read, as while it is being written."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        content = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether the process may still be there. Another host's cannot be looked at."""
    if not holder or holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        return _identity(holder["pid"]) == {"pid": holder["pid"], "started": holder["started"]}
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        since = datetime.fromtimestamp(holder["started"]).astimezone().isoformat(" ", "seconds")
        who = f"process {int(holder['pid'])} on {holder['host']}, started at {since},"
    return f"{who} is writing into {folder}; wait until it ends, stop it, or give another folder"
