"""What lies in the folder of a checkpoint, and whether it is still what was written. Loads no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from ddpm_hf.files import hash_of, is_intact, sealed

STATE = Path("training", "state.json")

READ_BY_RESUME = ("training/", "unet/")
"""Beginnings of the names of the files that a resume reads."""
ENTRIES: dict[str, type] = {
    **{"step": int, "skipped": int, "skipped_in_a_row": int, "ema_updates": int, "record": dict, "files": dict}
}
"""The entries of state.json that must be there, with their types."""


def step_of(path: Path) -> int:
    """The steps that a checkpoint's name says."""
    return int(path.name.partition("-")[2])


def what_is_broken(path: Path, parts: Sequence[str] = ("",), check_content: bool = True) -> str | None:
    """Why ``path`` is not an intact checkpoint; None if it is one.

    Args:
        path: The folder.
        parts: Look only at files whose names begin with one of these.
        check_content: Read all files and compare their hashes, rather than their sizes alone. (Checkpoints of earlier
            versions have no hashes.)
    """
    if not re.fullmatch(r"step-\d+", path.name) or not path.is_dir():
        return "no folder of that kind" if path.exists() else "there is no such folder"
    try:
        files = read_state(path)["files"]
    except ValueError as error:
        return str(error)
    for name, described in files.items():
        if not name.startswith(tuple(parts)):
            continue
        size, digest = described if isinstance(described, list) else (described, None)
        try:
            found = (path / name).stat().st_size
            if found != size:
                return f"its {name} has {found} bytes of {size}"
            if check_content and digest is not None and hash_of(path / name) != digest:
                return f"the content of its {name} has changed since it was saved"
        except FileNotFoundError:
            return f"its {name} is missing"
        except OSError as error:
            return f"its {name} cannot be read: {error.strerror}"
    return None


def record_of(path: Path) -> dict[str, Any]:
    """What was given to :meth:`Checkpoints.save` besides the state, with the step.

    Raises:
        ValueError: it cannot be read.
    """
    content = read_state(path)
    return {**content["record"], "step": content["step"]}


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's state.json.

    Raises:
        ValueError: it is missing, or not as it was written.
    """
    try:
        content = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError):
        raise ValueError(f"its {STATE} is missing or cannot be read") from None
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in ENTRIES.items()):
        raise ValueError(f"its {STATE} is of another form")
    if not is_intact(content):
        raise ValueError(f"the content of its {STATE} has changed since it was saved")
    if not all(_is_described(name, described) for name, described in content["files"].items()):
        raise ValueError(f"its {STATE} is of another form")
    if content["step"] != step_of(path):
        raise ValueError(f"its {STATE} is of step {content['step']}")
    return content


def _is_described(name: str, described: Any) -> bool:
    """Whether an entry of the files of state.json is one: a name in the folder, and its size, or size and hash."""
    is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    size, digest = described if isinstance(described, list) and len(described) == 2 else (described, "")
    return is_inside and isinstance(size, int) and isinstance(digest, str)


def described_files(folder: Path) -> dict[str, list[Any]]:
    """Name -> size and hash of each file in a folder, at any depth."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, hash_of(path)] for path in paths}


def resealed(state: Mapping[str, Any], published: Mapping[str, Path | bytes]) -> dict[str, Any]:
    """The content of a state.json for the copy of a checkpoint in which files are changed or left out on purpose.

    Args:
        state: That content.
        published: Name of a file in the copy -> the file, if it is as it was, or its new content.
    """
    files = {name: described for name, described in state["files"].items() if name in published}
    for name, content in published.items():
        if name in files and isinstance(content, bytes):
            files[name] = [len(content), xxhash.xxh3_128_hexdigest(content)]
    return sealed({**state, "files": files})


def newest_complete(folder: Path) -> Path | None:
    """The newest intact checkpoint in a folder of them."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return next((path for path in sorted(found, key=step_of, reverse=True) if what_is_broken(path) is None), None)
