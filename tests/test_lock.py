"""A folder has one writer at a time; a second one is told who that is, and those that died are in nobody's way."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddpm_hf.files import LOCK
from ddpm_hf.lock import FolderLock
from tests.runs import Started, ended, log_of

HOLD = "import sys, time; from pathlib import Path; from ddpm_hf.lock import FolderLock; "
HOLD += "lock = FolderLock(Path(sys.argv[1])); print(flush=True); time.sleep(60)"


def test_a_second_writer_is_told_who_writes_since_when_and_what_to_do(tmp_path: Path) -> None:
    FolderLock(tmp_path / "run")
    with pytest.raises(ValueError, match="is writing into") as caught:
        FolderLock(tmp_path / "run")
    said = str(caught.value)
    assert f"process {os.getpid()} on {socket.gethostname()}, started at 20" in said
    assert said.endswith(f"is writing into {tmp_path / 'run'}; wait until it ends, stop it, or give another folder")


def test_a_lock_is_released_without_a_trace(tmp_path: Path) -> None:
    for _ in range(2):
        FolderLock(tmp_path / "a" / "b").release()
        assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    lock = FolderLock(tmp_path / "kept")
    lock.release()
    lock.release()
    assert not list((tmp_path / "kept").iterdir())


def test_a_writer_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ValueError, match=f"process {holder.pid} on "):
        FolderLock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / LOCK).exists()
    FolderLock(tmp_path).release()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("changed", "is_held"),
    [
        ({}, True),
        ({"started": 5.0}, False),  # the number belongs to another process now
        ({"pid": 2**22 + 1}, False),  # above Linux' largest
        ({"pid": "x"}, False),
        ({"host": "elsewhere"}, True),  # nobody can look there
    ],
)
def test_without_locks_the_content_says_whether_its_process_may_live(
    tmp_path: Path, changed: dict[str, Any], is_held: bool
) -> None:
    me = {"pid": os.getpid(), "started": round(psutil.Process().create_time(), 1), "host": socket.gethostname()}
    (tmp_path / LOCK).write_text(json.dumps(me | changed))
    if is_held:
        with pytest.raises(ValueError, match=f"if that process is gone, remove {tmp_path / LOCK}"):
            FolderLock(tmp_path)
    else:
        FolderLock(tmp_path).release()


@pytest.mark.parametrize("content", ["", "[1]", "{", "{}", '{"pid": []}', "\x00\xff"])
def test_a_damaged_lock_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    FolderLock(tmp_path)
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(ValueError, match="is writing into"):
        FolderLock(tmp_path)


@pytest.mark.parametrize("inside", ["", "a/b"])
def test_a_path_at_which_there_can_be_no_folder_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=f"because {tmp_path / 'file'} is a file; name another place"):
        FolderLock(tmp_path / "file" / inside)
    with pytest.raises(
        ValueError, match=f"{tmp_path / 'link'} is a link to {tmp_path / 'nothing'}, where there is not"
    ):
        FolderLock(tmp_path / "link" / inside)


@pytest.mark.parametrize("processes", [1, 2])
def test_two_runs_do_not_share_a_folder(tmp_path: Path, processes: int) -> None:
    first = Started(["--training.steps", 5000], tmp_path / "run")
    first.wait_for_step(3)
    (tmp_path / "other").symlink_to("run")
    status, said = ended(tmp_path / "other", "--training.steps", 5000, "--seed", 1, processes=processes)
    assert status == 2
    assert said.count("\n") == 1, said
    assert f"process {first.processes[0].pid} on " in said
    assert (tmp_path / "run" / LOCK).exists()
    first.send(signal.SIGTERM)
    assert first.wait() == [75]
    steps = [line["step"] for line in log_of(tmp_path / "run")]
    assert steps == sorted(set(steps))
    assert not (tmp_path / "run" / LOCK).exists()
