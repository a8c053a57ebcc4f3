"""What is in files, so that changed images are seen whatever their sizes and times say."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm

from ddpm_hf.data.decoding import WORKERS
from ddpm_hf.data.folders import state_of
from ddpm_hf.files import hash_of, is_intact, sealed, written_whole


def content_of(paths: list[Path], show_progress: bool = False) -> list[str]:
    """A hash of each file's content. All are read once; then their states stand for that, until one changes.

    Raises:
        ValueError: a file cannot be read.
    """
    key = hashlib.sha256(json.dumps([[str(path.absolute()), state_of(path)] for path in paths]).encode()).hexdigest()
    kept = Path(HF_HOME) / "ddpm_hf" / "hashes" / f"{key[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found: dict[str, Any] = json.loads(kept.read_bytes())
        if is_intact(found) and len(found["hashes"]) == len(paths):
            return list(found["hashes"])
    bar = tqdm(total=len(paths), desc="reading files", unit="file", disable=not show_progress)
    with ThreadPoolExecutor(WORKERS) as pool, bar:
        hashes = [_counted(digest, bar) for digest in pool.map(_hash_of, paths)]
    with suppress(OSError), written_whole(kept, shared=True) as temporary:  # without it they are read again next time
        temporary.write_text(json.dumps(sealed({"hashes": hashes})))
    return hashes


def _hash_of(path: Path) -> str:
    try:
        return hash_of(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _counted(digest: str, bar: tqdm) -> str:
    bar.update()
    return digest
