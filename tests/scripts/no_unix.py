"""A training, drawing and scoring in which this package's own code sees the os, signal and modules that Windows has.

What other libraries see stays as it is: theirs have code of their own for Windows.

    python -m tests.scripts.no_unix EMPTY_FOLDER
"""

import builtins
import os
import pkgutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
"""Of the standard library, those that Windows lacks."""

# The manual's "Availability: Unix", but for constants.
NAMES: dict[ModuleType, set[str]] = {
    os: {
        *("chown", "chroot", "confstr", "eventfd", "fchown", "fdatasync", "fork", "forkpty", "fpathconf", "fstatvfs"),
        *("getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getsid"),
        *("getuid", "getxattr", "killpg", "lchown", "lockf", "memfd_create", "mkfifo", "mknod", "nice", "openpty"),
        *("pathconf", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite"),
        *("pwritev", "readv", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sendfile", "setegid"),
        *("seteuid", "setgid", "setpgid", "setpriority", "setsid", "setuid", "setxattr", "statvfs", "sync", "sysconf"),
        *("ttyname", "uname", "wait", "wait3", "wait4", "waitid", "writev", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"),
    },
    signal: {
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1", "SIGUSR2"),
        *("alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigpending", "sigwait"),
    },
}

TINY = [
    *("--threads", "1", "--model.block_out_channels", "[8,8]", "--model.norm_num_groups", "4"),
    *("--training.batch_size", "16", "--training.checkpoint_every", "2", "--training.log_every", "1"),
    *("--training.steps", "2"),
    *("--evaluation.num_images", "8", "--evaluation.num_inference_steps", "3", "--quiet"),
]


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("ddpm_hf", "train_accelerate")


class Windows(ModuleType):
    """The class of os and signal, which lack for our code what they lack on Windows."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if is_ours(sys._getframe(1).f_globals["__name__"]):
            if name in next(names for module, names in NAMES.items() if module is self):
                raise AttributeError(f"module {self!r} has no attribute {name!r}")
            if self is os and name == "open":
                return open_no_folder
        return value


def open_no_folder(path: Any, *arguments: Any, **options: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, *arguments, **options)


EXTRAS = {"gradio"}
"""What a module may import at its top and need not be there."""


def take_away() -> None:
    """Take away what Windows lacks."""
    load = builtins.__import__

    def guarded(name: str, globals: Any = None, *arguments: Any, **options: Any) -> ModuleType:
        if name in MODULES and is_ours((globals or {}).get("__name__") or ""):
            raise ImportError(f"No module named {name!r}")
        return load(name, globals, *arguments, **options)

    builtins.__import__ = guarded
    for module in NAMES:
        module.__class__ = Windows


def called(module: str, *arguments: object) -> int:
    """The exit status of a command of this package."""
    sys.argv = [module, *map(str, arguments)]
    try:
        import_module(module).main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def main(folder: Path) -> None:
    """Import every module, then use the commands."""
    take_away()
    import ddpm_hf

    for module in pkgutil.walk_packages(ddpm_hf.__path__, "ddpm_hf."):
        if not module.name.endswith("__main__"):
            try:
                import_module(module.name)
            except ModuleNotFoundError as missing:  # of an extra that is not installed
                if missing.name not in EXTRAS:
                    raise
    run, samples = folder / "run", folder / "samples"
    for _ in range(2):  # the second time from the checkpoint
        assert called("train_accelerate", "--output_dir", run, *TINY) == 0
    drawn = ["--num_images", 8, "--num_inference_steps", 3, "--quiet"]
    assert called("ddpm_hf.cli.sample", "--model", run, *drawn, "--output", samples) == 0
    scored = ["--samples", samples, "--reference", "digits", "--extractor", "digits", "--bootstrap", 0]
    assert called("ddpm_hf.cli.evaluate", *scored, "--output", folder / "scores") == 0
    from ddpm_hf.lock import FolderLock

    lock = FolderLock(folder / "locked")
    with pytest.raises(ValueError, match="is writing into"):
        FolderLock(folder / "locked")
    lock.release()
    assert not (folder / "locked").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
