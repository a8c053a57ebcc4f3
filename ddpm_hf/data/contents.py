"""What is in files, so that changed images are seen whatever their sizes and times say, and each is read once."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from ddpm_hf.data.decoding import WORKERS
from ddpm_hf.data.folders import state_of
from ddpm_hf.files import hash_of, is_intact, sealed, written_whole
from ddpm_hf.progress import Progress


def content_of(paths: list[Path], show_progress: bool = False) -> list[str]:
    """A hash of each file's content. All are read once; then their states stand for that, until one changes.

    Raises:
        ValueError: a file cannot be read.
    """

    def read() -> list[str]:
        told = Progress("reading files", len(paths), "file", show_progress)
        with ThreadPoolExecutor(WORKERS) as pool, told:
            return [_counted(digest, told) for digest in pool.map(_hash_of, paths)]

    return remembered("hashes", paths, read)


def remembered(kind: str, paths: list[Path], read: Callable[[], list[Any]]) -> list[Any]:
    """What was read from files once, for as long as their states stay the same.

    Args:
        kind: What it is, such as "hashes"; to be changed with the form of the result.
        paths: The files.
        read: Reads them all: one result of JSON's types for each.

    Raises:
        ValueError: whatever ``read`` raises.
    """
    key = hashlib.sha256(json.dumps([[str(path.absolute()), state_of(path)] for path in paths]).encode()).hexdigest()
    kept = Path(HF_HOME) / "ddpm_hf" / kind / f"{key[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found: dict[str, Any] = json.loads(kept.read_bytes())
        if is_intact(found) and len(found[kind]) == len(paths):
            return list(found[kind])
    results = read()
    with suppress(OSError), written_whole(kept, shared=True) as temporary:  # without it they are read again next time
        temporary.write_text(json.dumps(sealed({kind: results})))
    return results


def _hash_of(path: Path) -> str:
    try:
        return hash_of(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _counted(digest: str, told: Progress) -> str:
    told.advance()
    return digest
