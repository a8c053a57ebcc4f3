"""Files of weights that come from their publishers on first use, whole and once, and are kept."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import is_offline_mode
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from tqdm.auto import tqdm

from ddpm_hf.files import PARTIAL, sha256_of, write_text
from ddpm_hf.http_client import httpx
from ddpm_hf.progress import Progress, has_terminal

WAITS = (1, 2, 4)
"""Seconds between attempts at a server that fails; at lost connections the Hub's client makes attempts of its own."""
PASSING = (500, 502, 503, 504)


@dataclass(frozen=True)
class Source:
    """Where the file of weights of a network comes from.

    Args:
        file: Its name in the folder of weights.
        url: URL at its publisher.
        sha256: Hash of its content; None where the publisher gives none. Then the hash of what was fetched is kept
            beside it, and a file that changes later is refused. Every result names the hash of the file used.
    """

    file: str
    url: str
    sha256: str | None

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return Path(HF_HOME) / "ddpm_hf" / "weights" / self.file

    @property
    def expected(self) -> str | None:
        """The hash that the kept file must have; None where nobody has said or kept one."""
        record = _record(self.path)
        return self.sha256 or (record.read_text().strip() if record.is_file() else None)


def fetched(name: str, source: Source) -> Path:
    """The kept file of weights, which is fetched if it is not there.

    The Hub's client does it: with the proxies of the environment, and with a bar where somebody is at a terminal. What
    a killed process left is continued where the hash will tell whether the parts fit together, and else begun anew. Of
    several processes the first fetches, and the others wait for it.

    Args:
        name: The extractor's, for messages.
        source: Where it comes from.

    Raises:
        ValueError: it cannot be had (HF_HUB_OFFLINE, no network, a server that refuses or sends something else), in a
            sentence with the command that gets it by other means.
    """
    path = source.path
    if path.is_file():
        return path
    if is_offline_mode():
        raise _absent(name, source, "HF_HUB_OFFLINE is set")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():  # another process may have fetched it meanwhile
                print(f"Fetching the weights of the extractor {name} from {source.url}", file=sys.stderr)
                _fetch(name, source)
    except HfHubHTTPError as error:
        raise _absent(name, source, f"their publisher answers {error.response.status_code}") from error
    except (OSError, httpx.HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _absent(name, source, f"they cannot be fetched ({reason})") from error
    return path


def _fetch(name: str, source: Source) -> None:
    partial = source.path.with_name(f".{source.file}{PARTIAL}")
    if source.sha256 is None:
        partial.unlink(missing_ok=True)
    for last in (False, True):
        was_begun = partial.exists() and partial.stat().st_size > 0
        with Progress(f"downloading {source.file}", 1, "file", shown=not has_terminal()) as told:
            _download(source.url, partial)
            told.advance()
        found = sha256_of(partial)
        if source.sha256 in (None, found):
            break
        partial.unlink()
        if last or not was_begun:
            raise ValueError(
                f"{source.url} sent a file with the SHA-256 {found}, and the weights of the extractor {name} have "
                f"{source.sha256}; a proxy may be in between: get them elsewhere, and give their path to "
                "--extractor_weights"
            )
    if source.sha256 is None:
        write_text(_record(source.path), f"{found}\n")
    partial.replace(source.path)


def _download(url: str, partial: Path) -> None:
    """Have all of it in a file, some of which may be there. The Hub's client continues where a connection broke."""
    for wait in (*WAITS, None):
        try:
            with partial.open("ab") as file:
                http_get(url, file, resume_size=file.tell(), tqdm_class=_Bar)
            return
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 416 and wait is not None and partial.stat().st_size > 0:  # it is all there, or more than all
                partial.unlink()
                continue
            if wait is None or status not in PASSING:
                raise
            print(f"Note: {url} answers {status}; another attempt in {wait} s.", file=sys.stderr)
            time.sleep(wait)


class _Bar(tqdm):  # type: ignore[misc]
    """Shown where somebody is at a terminal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.pop("name", None)  # of the Hub's own bars
        super().__init__(*arguments, **{**options, "disable": not has_terminal()})


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _absent(name: str, source: Source, reason: str) -> ValueError:
    return ValueError(
        f"the weights of the extractor {name} are not at {source.path}, and {reason}; get them with 'curl "
        f"--create-dirs -Lo {source.path} {source.url}', or give their path to --extractor_weights"
    )
