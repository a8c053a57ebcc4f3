"""What a Hub keeps: repositories, each with branches of commits, a commit being a table of files."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

LARGE = ("*.safetensors", "*.parquet", "*.npz", "*.bin")


@dataclass(frozen=True)
class File:
    """Content, and whether it is stored as a large file."""

    content: bytes
    is_large: bool

    @property
    def git_hash(self) -> str:
        """Of the content, or of the pointer that git holds in its place."""
        content = self.content
        if self.is_large:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_hash


@dataclass(frozen=True)
class Commit:
    """One state of all files."""

    files: dict[str, File]
    title: str
    parent: str | None

    @property
    def hash(self) -> str:
        table = sorted((path, file.etag) for path, file in self.files.items())
        return hashlib.sha1(repr((table, self.title, self.parent)).encode()).hexdigest()


@dataclass
class Repository:
    """One model or data set.

    Args:
        kind: "models" or "datasets".
        name: OWNER/NAME.
        private: Only its owner sees it.
        gated: Everyone sees it, only its owner reads the files.
    """

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._add(
            "main", Commit({".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit", None)
        )

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def commit_of(self, revision: str) -> tuple[str, Commit] | None:
        """By the name of a branch or the hash of a commit."""
        key = self.branches.get(revision, revision)
        return (key, self.commits[key]) if key in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content."""
        found = self.commit_of(revision)
        assert found is not None, f"{self.name} has no {revision}"
        return {path: file.content for path, file in found[1].files.items()}

    def titles(self, branch: str = "main") -> list[str]:
        """Of the commits, newest first."""
        found, titles = self.commit_of(branch), []
        while found is not None:
            titles.append(found[1].title)
            found = self.commit_of(found[1].parent or "")
        return titles

    def put(self, files: dict[str, bytes], branch: str = "main", title: str = "by the test") -> str:
        """Commit files past all protocols."""
        changed = {path: File(content, is_large(path)) for path, content in files.items()}
        return self._add(branch, self._next(branch, changed, [], title))

    def remove(self, path: str) -> None:
        """Commit without a file."""
        self._add("main", self._next("main", {}, [path], "by the test"))

    def apply(self, branch: str, lines: Iterable[dict[str, Any]], decode: Any) -> str:
        """A commit as its client sends it: lines of header, file, lfsFile, deletedFile and deletedFolder.

        Raises:
            KeyError: a large file is named that was never uploaded.
            RuntimeError: the branch is no longer at the parent that the client names.
        """
        title, changed, deleted = "", {}, []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, self.branches[branch]):
                    raise RuntimeError("A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                changed[value["path"]] = File(decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                changed[value["path"]] = File(self.large[value["oid"]], True)
            else:
                deleted.append(value["path"].rstrip("/") + ("/*" if line["key"] == "deletedFolder" else ""))
        return self._add(branch, self._next(branch, changed, deleted, title))

    def _next(self, branch: str, changed: dict[str, File], deleted: list[str], title: str) -> Commit:
        parent = self.branches[branch]
        kept = self.commits[parent].files.items()
        files = {path: file for path, file in kept if not any(fnmatch(path, pattern) for pattern in deleted)}
        return Commit(files | changed, title, parent)

    def _add(self, branch: str, commit: Commit) -> str:
        self.commits[commit.hash] = commit
        self.branches[branch] = commit.hash
        return commit.hash


def is_large(path: str) -> bool:
    """Whether the Hub wants it as a large file."""
    return any(fnmatch(path, pattern) for pattern in LARGE)
