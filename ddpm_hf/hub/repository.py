"""Repositories on the Hub: may we write there, commits that survive a failing Hub, and its errors in one sentence each.

A commit is one request, so a repository never holds half a push. Its answer may still get lost, which is why every
attempt first asks what is there: files that are the same are not sent again, and a commit of nothing is none.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory, get_session
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars

from ddpm_hf.http_client import httpx
from ddpm_hf.hub.public_files import Files

NOT_PUSHED = 69
"""Exit status of a command that did all its work and could not push it: EX_UNAVAILABLE."""
WAITS = (1, 2, 4, 8, 15, 30, 60)
"""Seconds between the attempts at one thing; most requests have retries of their own inside."""
AT_THE_START = 4
"""How many of these waits are made before training begins, when a user may be watching."""
SILENCE = 120
"""Seconds without a byte after which a connection counts as lost."""
SLOW = 5
"""Seconds without an answer after which a user who may be watching is told."""
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)
"""What the Hub answers when another attempt may work; 409 is another commit under way, 412 one in between."""

Write = Callable[[str | None], str]
"""The README that is there, or None -> the one to write."""
Result = TypeVar("Result")


class PushError(Exception):
    """A push did not happen; the message says why in one sentence."""


@dataclass(frozen=True)
class Repository:
    """A model, data set or Space on the Hub that is written to.

    Args:
        id: OWNER/NAME.
        kind: What it holds.
        private: Whether it is made private where it is not there yet.
        token: In place of HF_TOKEN and of the one that ``hf auth login`` has stored.

    Raises:
        ValueError: the id has another form.
    """

    id: str
    kind: Literal["model", "dataset", "space"] = "model"
    private: bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.id)
        except HFValidationError:
            valid = False
        else:
            valid = self.id.count("/") == 1
        if not valid:
            raise ValueError(
                f"{self.id!r} is no id of a {self.kind} on the Hub; give OWNER/NAME, such as me/ddpm-digits"
            )

    def prepare(self) -> None:
        """Create the repository if it does not exist, and check that we may write to it.

        Raises:
            PushError: we may not, it holds something else, or the Hub cannot be asked.
        """
        if self.token is None and get_token() is None:
            raise PushError(
                f"pushing to {self.id} needs a token, and there is none; give --hub_token or HF_TOKEN, or run "
                "'hf auth login'"
            )
        files = _try_often(self._found_or_made, self.id, AT_THE_START)
        api = api_of(self.token)
        _try_often(lambda: api.auth_check(self.id, repo_type=self.kind, write=True), self.id, AT_THE_START)
        # The file that tells ours, and what may be there without it.
        ours = {"model": "model_index.json", "dataset": "manifest.json", "space": "ddpm_hf/demo/page.py"}[self.kind]
        harmless = [".gitattributes", "*.md", "LICENSE*", "*.png", *(["*.py"] if self.kind != "space" else [])]
        strangers = [name for name in files if not any(fnmatch(name, pattern) for pattern in harmless)]
        if strangers and ours not in files:
            raise PushError(
                f"{self.id} holds something else ({', '.join(strangers[:3])}, and no {ours}); give another id"
            )
        if ours in files and self.kind == "model":
            index = _try_often(lambda: Path(api.hf_hub_download(self.id, ours)).read_text(), self.id, AT_THE_START)
            if '"UNet2DModel"' not in index:
                raise PushError(f"{self.id} holds a pipeline of another kind (see its {ours}); give another id")

    def _found_or_made(self) -> list[str]:
        """The files there."""
        api = api_of(self.token)
        try:
            return list(api.list_repo_files(self.id, repo_type=self.kind))
        except RepositoryNotFoundError:
            sdk = "gradio" if self.kind == "space" else None
            api.create_repo(self.id, repo_type=self.kind, private=self.private or None, exist_ok=True, space_sdk=sdk)
            return []

    def commit(
        self, files: Files, message: str, card: Write | None = None, branch: str = "main", mirror: bool = False
    ) -> str:
        """Write files in one commit, or find them there already.

        Args:
            files: Path in the repository -> local path or content.
            message: The commit's.
            card: Makes README.md.
            branch: Made if it is not there.
            mirror: Remove what else is on the branch.

        Returns:
            The URL of the commit.

        Raises:
            PushError: it did not work, and trying again would not help or has not helped.
        """
        return _try_often(lambda: self._commit(files, message, card, branch, mirror), self.id)

    def _commit(self, files: Files, message: str, card: Write | None, branch: str, mirror: bool) -> str:
        api = api_of(self.token)

        def ask(method: Callable[..., Result], *arguments: str, **options: Any) -> Result:
            # Each question is asked until it is answered: if a third of all fail, a row of them seldom gets through.
            return _try_often(lambda: method(self.id, *arguments, repo_type=self.kind, **options), self.id)

        if branch != "main":
            ask(api.create_branch, branch=branch, exist_ok=True)
        head = ask(api.repo_info, revision=branch).sha
        there = set(ask(api.list_repo_files, revision=head))
        if card is not None:
            present = None
            if "README.md" in there:
                present = Path(ask(api.hf_hub_download, "README.md", revision=head)).read_text()
            files = {**files, "README.md": card(present).encode()}
        gone = there - files.keys() - {".gitattributes"} if mirror else set()
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationDelete(name) for name in sorted(gone)),
            *(CommitOperationAdd(name, content) for name, content in files.items()),
        ]
        # With the parent, so that a commit in between, as of a user at the card, is seen and not overwritten.
        done = api.create_commit(
            self.id, operations, commit_message=message, repo_type=self.kind, revision=branch, parent_commit=head
        )
        return str(done.commit_url)


@contextmanager
def told_in_one_sentence(repository: str) -> Iterator[None]:
    """Have an error of the Hub within the context come out as an OSError of one sentence; others pass as they are."""
    try:
        yield
    except Exception as error:
        if _cause(error) is None:
            raise
        raise OSError(explain(error, repository)) from error


def explain(error: BaseException, repository: str) -> str:
    """Explain a library's error about a repository in one sentence."""
    cause = _cause(error)
    match cause:
        case OfflineModeIsEnabled():
            return f"{repository} cannot be asked for, as HF_HUB_OFFLINE is set; unset it"
        case GatedRepoError():
            return (
                f"{repository} is gated: ask for access on its page, {constants.ENDPOINT}/{repository}, and give a "
                "token that has it (HF_TOKEN, or 'hf auth login')"
            )
        case RepositoryNotFoundError():
            return (
                f"{repository} is not on the Hub, or is private and not for this token; see the id, and give a token "
                "that may read it (HF_TOKEN, or 'hf auth login')"
            )
        case RevisionNotFoundError():
            return f"{repository} has no such revision; give a branch, tag or commit that it has"
        case EntryNotFoundError() if isinstance(cause, HfHubHTTPError):
            return f"{repository} has no {Path(str(cause.response.url)).name}: it holds something else"
        case HfHubHTTPError() if cause.response.status_code == 401:
            return f"the Hub does not take the token for {repository}: it has expired or is mistyped; give another one"
        case HfHubHTTPError() if cause.response.status_code == 403:
            return f"the token may not write to {repository}; give one with the right to, or another id"
        case HfHubHTTPError():
            return f"the Hub answered {cause.response.status_code} for {repository}; try again later"
        case httpx.TransportError():
            reason = " ".join(str(cause).split()) or type(cause).__name__
            return f"the Hub at {constants.ENDPOINT} cannot be reached for {repository} ({reason}); try again later"
    return f"{repository}: {' '.join(str(error).split())}"


def retried(attempt: Callable[[], Result], repository: str, times: int | None = None) -> Result:
    """Ask the Hub until it answers: the one policy of retries, for what is sent and what is fetched.

    Args:
        attempt: What is asked.
        repository: For messages; one on stderr tells of each wait.
        times: How many of `WAITS` are made, while somebody may be watching, who is told of a slow answer too; None for
            all.

    Raises:
        Exception: that of the last attempt, or of one that no other would mend.
    """
    for wait in (*WAITS[:times], None):
        try:
            with _told_if_slow(repository) if times is not None else nullcontext():
                return attempt()
        except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
            cause = _cause(error)
            passing = isinstance(cause, httpx.TransportError) or (
                cause.response.status_code in PASSING
                if isinstance(cause, HfHubHTTPError)
                else isinstance(error, RuntimeError)  # Xet's client has no other name for a lost connection
            )
            if wait is None or not passing:
                raise
            said = explain(error, repository).removesuffix("; try again later")
        print(f"Note: {said}; another attempt in {wait} s.", file=sys.stderr)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _told_if_slow(repository: str) -> Iterator[None]:
    said = f"Note: waiting for the Hub at {constants.ENDPOINT} to answer for {repository}."
    timer = threading.Timer(SLOW, print, [said], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _try_often(attempt: Callable[[], Result], repository: str, times: int | None = None) -> Result:
    """`retried` for a push.

    Raises:
        PushError: it did not work.
    """
    try:
        return retried(attempt, repository, times)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise PushError(explain(error, repository)) from error


def is_of_the_hub(error: BaseException) -> bool:
    """Whether an error comes from the Hub or the network to it."""
    return _cause(error) is not None


def _cause(error: BaseException) -> BaseException | None:
    """The first error of the Hub or the network among those that led to this one."""
    kinds = (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled)
    return next((found for found in _chain(error) if isinstance(found, kinds)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _client() -> httpx.Client:
    """huggingface_hub's session, with a timeout: without one it would wait forever for a silent Hub."""
    client = default_client_factory()
    client.timeout = httpx.Timeout(SILENCE, connect=SILENCE / 6)
    return client


def api_of(token: str | None) -> HfApi:
    """The Hub's client, which waits for no answer for ever."""
    disable_progress_bars()
    if get_session().timeout.read is None:  # once: a change closes connections that a streamed data set may have
        set_client_factory(_client)
    return HfApi(token=token)
