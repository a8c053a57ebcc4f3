"""Files and folders that are there whole or not at all."""

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest

from ddpm_hf import files
from ddpm_hf.files import (
    WriteError,
    is_temporary,
    remove,
    remove_temporaries,
    sha256_of,
    sync,
    sync_tree,
    write_json,
    written_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_has_its_name_once_it_is_complete(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "new" / "a.txt"
    for content in ("first", "second"):
        with written_whole(path, shared=shared) as temporary:
            assert not temporary.exists()
            temporary.write_text(content)
            assert is_temporary(temporary.relative_to(tmp_path))
            assert path.exists() == (content == "second")
        assert path.read_text() == content
        assert names(path.parent) == ["a.txt"]


def test_a_folder_replaces_an_earlier_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with written_whole(tmp_path / "best") as temporary:
            temporary.mkdir()
            (temporary / name).touch()
        assert names(tmp_path) == ["best"]
        assert names(tmp_path / "best") == [name]


def test_an_error_leaves_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("earlier")

    def fail() -> None:
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "earlier"


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    for left in (".best.partial", ".best.removed", "best"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "old").touch()
    with written_whole(tmp_path / "best") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["best"]
    assert names(tmp_path / "best") == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_cannot_be_written_is_named_and_leaves_no_temporary(tmp_path: Path, kind: str) -> None:
    """The system's error of a full disk names no file."""

    def write_to_a_full_disk() -> None:
        with written_whole(tmp_path / "a") as temporary:
            if kind == "folder":
                temporary.mkdir()
            with (temporary if kind == "file" else temporary / "b").open("w"):
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError) as raised:
        write_to_a_full_disk()
    assert str(raised.value) == f"{tmp_path / 'a'} cannot be written: No space left on device"
    assert raised.value.errno == errno.ENOSPC
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # as it goes to other processes
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(WriteError, match=r"a/b/c\.json cannot be written: "):
        write_json(tmp_path / "a" / "b" / "c.json", {})


def test_what_cannot_be_read_keeps_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), written_whole(tmp_path / "a") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())
    assert names(tmp_path) == []


@pytest.mark.parametrize("stop_after", range(6))
def test_a_removal_that_was_killed_is_finished_by_the_next_one(tmp_path: Path, stop_after: int) -> None:
    """At any file: of `.best.removed` some are gone."""

    def fill(folder: Path) -> None:
        for name in ("a", "b/c", "b/d", "e/f"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    fill(tmp_path / ".best.removed")
    for path in sorted((tmp_path / ".best.removed").rglob("*"), reverse=True)[:stop_after]:
        path.rmdir() if path.is_dir() else path.unlink()
    for _ in range(2):  # the second time there is a folder to set aside
        with written_whole(tmp_path / "best") as temporary:
            fill(temporary)
    assert names(tmp_path) == ["best"]


def test_a_folder_is_removed_under_a_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-1").mkdir()
    left: list[list[str]] = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda _: left.append(names(tmp_path)))
    remove(tmp_path / "step-1")
    assert left == [[".step-1.removed"]]
    assert is_temporary(Path("checkpoints", left[0][0], "state.json"))


def test_a_start_clears_away_what_is_temporary_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.7.partial", ".best.partial", ".step-1.removed", ".push-x", ".cache", "a.partial", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / ".c.json.partial").touch()
    remove_temporaries(tmp_path, tmp_path / "absent")
    assert names(tmp_path) == [".cache", "a.partial", "b"]


def test_a_temporary_that_may_still_be_written_stays(tmp_path: Path) -> None:
    for name in (".old.7.partial", ".new.8.partial"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".old.7.partial", (0, 0))
    remove_temporaries(tmp_path, older_than=3600)
    assert names(tmp_path) == [".new.8.partial"]


def test_only_names_of_ours_are_temporary() -> None:
    assert is_temporary(Path(".data.partial", "train-00000.parquet"))
    assert not any(
        is_temporary(Path(name)) for name in ("a.partial", ".partial", ".push-", ".cache/a.png", "my.removed/a.png")
    )


def test_json_and_hash(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"one": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"one": [1]}
    assert sha256_of(tmp_path / "a.json") == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()


def test_sync_reaches_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    sync_tree(tmp_path)
    assert set(synced) == {tmp_path, *tmp_path.rglob("*")}
    assert synced[-1] == tmp_path


def test_a_system_may_lack_sync_for_folders_but_not_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    def refuse(descriptor: int) -> None:
        raise OSError(files.errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        sync(tmp_path / "file")
