"""Files from the Hub, compared with the hashes that it names them by; a damaged one is fetched anew."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from ddpm_hf.files import sha256_of
from ddpm_hf.hub.repository import AT_THE_START, api_of, retried


def fetched(fetch: Callable[[], Path], repository: str) -> Path:
    """A folder from the Hub, or its cache, whose files are what the Hub says that they are.

    A download looks at the size of a file only, and a file in the cache is never looked at again.

    Args:
        fetch: Downloads what is missing in the cache, and returns the folder.
        repository: For messages.

    Raises:
        OSError: a file is damaged again after it was fetched anew.
    """
    folder = retried(fetch, repository, AT_THE_START)
    found = damaged(folder)
    if not found:
        return folder
    for blob in found:
        blob.unlink()
    folder = retried(fetch, repository, AT_THE_START)
    again = damaged(folder)
    if again:
        raise OSError(f"{again[0]} does not hold what {repository} has, even when fetched anew; try again later")
    return folder


def files_of(repository: str, revision: str, token: str | None = None) -> list[str]:
    """The names of all files that a model on the Hub has at a revision."""
    api = api_of(token)
    return list(retried(lambda: api.list_repo_files(repository, revision=revision), repository, AT_THE_START))


def beyond_index(folder: str | Path) -> Path:
    """The folder of a pipeline from the Hub, of which more than the index was fetched.

    diffusers fetches the index first. Where the Hub fails after that, it may take what is in the cache for the whole.

    Raises:
        RuntimeError: the index of a model such as ours is all that is there; `retried` fetches again.
    """
    present = {path.name: path for path in Path(folder).iterdir()}
    if present.keys() == {"model_index.json"} and '"UNet2DModel"' in present["model_index.json"].read_text():
        raise RuntimeError("only the index of the model has come")
    return Path(folder)


def damaged(folder: Path) -> list[Path]:
    """Files of the Hub's cache, behind the links of a folder, whose content is not that of their name.

    The cache names a large file by its SHA-256 and a small one as git does, by the SHA-1 of its length and content.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        blob = path.resolve()
        if not path.is_symlink() or not blob.is_file():
            continue  # a file system without links has no names to compare
        is_right = {64: _has_sha256, 40: _has_git_sha1}.get(len(blob.name))
        if is_right is not None and not is_right(blob):
            found.append(blob)
    return found


def _has_sha256(blob: Path) -> bool:
    return sha256_of(blob) == blob.name


def _has_git_sha1(blob: Path) -> bool:
    content = blob.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob.name
