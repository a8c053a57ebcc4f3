"""The Hub's HTTP interface, as far as huggingface_hub, diffusers and datasets use it."""

import base64
import functools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub_server.faults import Fault, Trouble
from tests.hub_server.repositories import Commit, File, Repository, is_large


@dataclass
class Account:
    """Whom a token stands for.

    Args:
        user: Owns the repositories whose names begin so.
        can_write: False for a read-only token.
        requests_left: After so many the token has expired; None for never.
    """

    user: str
    can_write: bool = True
    requests_left: int | None = None


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.content = status, code, content


class Hub:
    """A Hub that listens on this machine, until its context ends.

    Attributes:
        url: For HF_ENDPOINT.
        accounts: Token -> whom it stands for.
        faults: What goes wrong; the first that has something to say about a request decides.
        requests: "METHOD /path token" of all so far.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._port = 0
        self._server: _Server | None = None
        self.reset()

    def reset(self) -> None:
        """Empty it, and be there."""
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.start()

    def start(self) -> None:
        """Be there, always at the same address."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self._port), _Handler)
            self._server.hub = self
            self._port = self._server.server_address[1]
            self.url = f"http://127.0.0.1:{self._port}"
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def vanish(self) -> Trouble:
        """As a fault: be gone from this request on."""
        threading.Thread(target=self.stop).start()
        return Trouble(drop="before")

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def add(self, name: str, kind: str = "models", files: dict[str, bytes] | None = None, **access: bool) -> Repository:
        """A repository that is there already."""
        repository = Repository(kind, name, **access)
        self.repositories[kind, name] = repository
        if files:
            repository.put(files)
        return repository

    def model(self, name: str) -> Repository:
        return self.repositories["models", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["datasets", name]

    def space(self, name: str) -> Repository:
        return self.repositories["spaces", name]

    def asked(self, pattern: str) -> list[str]:
        """The requests that match."""
        return [request for request in self.requests if re.search(pattern, request)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """The tests' output stays theirs."""

    def do_GET(self) -> None:
        self._carry_out()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def _carry_out(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        request = f"{self.command} {unquote(url.path)}"
        hub = self.server.hub
        hub.requests.append(f"{request} {self.token}")
        self.trouble = next((found for fault in hub.faults if (found := fault(request))), Trouble())
        if self.trouble.drop == "before":
            return self._hang_up()
        try:
            if self.trouble.status:
                raise Refusal(self.trouble.status, "trouble at the Hub")
            with hub.lock:
                answer = self._answer(request)
        except Refusal as refusal:
            answer = functools.partial(self._refuse, refusal)
        if self.trouble.drop == "after":
            return self._hang_up()
        answer()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
        if self.trouble.retry_after is not None:
            headers["Retry-After"] = str(self.trouble.retry_after)
        self._json({"error": str(refusal), **refusal.content}, refusal.status, headers)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.trouble.cut else content)
        if self.trouble.cut:
            self._hang_up()

    def _answer(self, request: str) -> Callable[[], None]:
        account = self._account()
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, request):
                return method(self, account, *found.groups())
        raise Refusal(404, "no such page")

    # Who asks, and what for.

    def _account(self) -> Account | None:
        if self.token is None:
            return None
        account = self.server.hub.accounts.get(self.token)
        if account is None or account.requests_left == 0:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if account.requests_left is not None:
            account.requests_left -= 1
        return account

    def _repository(self, account: Account | None, kind: str, name: str, to: str = "see") -> Repository:
        """The repository, if it is there for this account "to" see, read or write."""
        found = self.server.hub.repositories.get((kind, name))
        is_owner = account is not None and found is not None and account.user == found.owner
        if found is None or (found.private and not is_owner):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if to != "see" and found.gated and not is_owner:
            raise Refusal(403 if account else 401, f"Access to {kind[:-1]} {name} is restricted.", "GatedRepo")
        if to == "write" and not (account and is_owner and account.can_write):
            raise Refusal(403 if account else 401, "You don't have the right to write to this repository")
        return found

    def _commit(self, repository: Repository, revision: str) -> tuple[str, Commit]:
        found = repository.commit_of(unquote(revision))
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # The pages.

    def create(self, account: Account | None) -> Callable[[], None]:
        asked = json.loads(self.body)
        kind = {"dataset": "datasets", "space": "spaces"}.get(asked.get("type"), "models")
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or account.user
        name = f"{owner}/{asked['name']}"
        content = {"url": f"{self.server.hub.url}/{'' if kind == 'models' else f'{kind}/'}{name}", "name": name}
        if not account.can_write or owner != account.user:
            raise Refusal(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}")
        if (kind, name) in self.server.hub.repositories:
            raise Refusal(409, "You already created this repo", **content)
        if kind == "spaces" and asked.get("sdk") != "gradio":
            raise Refusal(400, "A Space needs an sdk")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        files = {"README.md": NEW_SPACE.encode()} if kind == "spaces" else None
        self.server.hub.add(name, kind, files, private=private)
        return lambda: self._json(content)

    def validate_yaml(self, account: Account | None) -> Callable[[], None]:
        asked = json.loads(self.body)
        block = re.match(r"---\n(.*?)\n---", asked["content"], re.DOTALL)
        errors: list[str] = []
        data = yaml.safe_load(block[1]) if block else None
        if not isinstance(data, dict):
            errors.append("there is no metadata")
        elif asked["repoType"] == "model":
            errors += list(_faults_of_card(data))
        found = [{"message": error} for error in errors]
        return lambda: self._json({"errors": found, "warnings": []}, 400 if errors else 200)

    def auth_check(self, account: Account | None, kind: str, name: str, write: str | None) -> Callable[[], None]:
        self._repository(account, kind, name, "write" if write else "read")
        return lambda: self._json({"success": True})

    def info(self, account: Account | None, kind: str, name: str, revision: str | None) -> Callable[[], None]:
        repository = self._repository(account, kind, name)
        key, commit = self._commit(repository, revision or "main")
        content: dict[str, Any] = {"id": name, "sha": key, "private": repository.private, "gated": repository.gated}
        content |= {"tags": [], "downloads": 0, "likes": 0, "author": repository.owner, "cardData": _card(commit)}
        content |= {"siblings": [{"rfilename": path} for path in sorted(commit.files)]}
        return lambda: self._json(content)

    def tree(
        self, account: Account | None, kind: str, name: str, revision: str, folder: str | None
    ) -> Callable[[], None]:
        _, commit = self._commit(self._repository(account, kind, name), revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in sorted(commit.files.items()) if path.startswith(prefix)}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", "false").lower() == "true"
        entries = {}
        for path, file in inside.items():
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if deep else min(2, len(parts))):
                above = prefix + "/".join(parts[:depth])
                entries[above] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": above}
            if deep or len(parts) == 1:
                entries[path] = _entry(path, file)
        return lambda: self._json(list(entries.values()))

    def branch(self, account: Account | None, kind: str, name: str, branch: str) -> Callable[[], None]:
        repository = self._repository(account, kind, name, "write")
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        start = (json.loads(self.body) if self.body else {}).get("startingPoint") or "main"
        repository.branches[branch] = self._commit(repository, start)[0]
        return lambda: self._json({})

    def preupload(self, account: Account | None, kind: str, name: str, revision: str) -> Callable[[], None]:
        _, commit = self._commit(self._repository(account, kind, name, "write"), revision)
        files = []
        for file in json.loads(self.body)["files"]:
            there = commit.files.get(file["path"])
            mode = "lfs" if is_large(file["path"]) else "regular"
            oid = there.etag if there else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return lambda: self._json({"files": files})

    def lfs_batch(self, account: Account | None, prefix: str, name: str) -> Callable[[], None]:
        kind = prefix.rstrip("/") or "models"
        repository = self._repository(account, kind, name, "write")
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repository.large:
                where = f"{self.server.hub.url}/lfs/{kind}/{name}/{asked['oid']}"
                entry["actions"] = {"upload": {"href": where}, "verify": {"href": f"{where}/verify"}}
            objects.append(entry)
        return lambda: self._json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, account: Account | None, kind: str, name: str, oid: str) -> Callable[[], None]:
        file = File(self.body, True)
        if file.sha256 != oid:
            raise Refusal(400, "the content does not have that hash")
        self.server.hub.repositories[kind, name].large[oid] = self.body
        return lambda: self._send(b"")

    def lfs_verify(self, account: Account | None, kind: str, name: str, oid: str) -> Callable[[], None]:
        large = self._repository(account, kind, name, "write").large
        if len(large.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(404, "the object is not there")
        return lambda: self._json({})

    def commit(self, account: Account | None, kind: str, name: str, branch: str) -> Callable[[], None]:
        repository = self._repository(account, kind, name, "write")
        self._commit(repository, branch)
        lines = [json.loads(line) for line in self.body.splitlines()]
        try:
            key = repository.apply(branch, lines, base64.b64decode)
        except KeyError as error:
            raise Refusal(400, f"the large file {error} was never uploaded") from error
        except RuntimeError as error:
            raise Refusal(412, str(error)) from error
        content = {"success": True, "commitOid": key, "commitUrl": f"{self.server.hub.url}/{name}/commit/{key}"}
        return lambda: self._json(content)

    def resolve(
        self, account: Account | None, prefix: str | None, name: str, revision: str, path: str
    ) -> Callable[[], None]:
        repository = self._repository(account, (prefix or "models").rstrip("/"), name, "read")
        key, commit = self._commit(repository, revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": key}
        if file is None:
            there = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", **headers}
            return lambda: self._json({"error": "Entry not found"}, 404, there)
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.is_large:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return lambda: self._send(file.content, 200, headers)
        start, stop = int(span[1]), min(int(span[2] or len(file.content)), len(file.content) - 1) + 1
        if start >= len(file.content):
            return lambda: self._send(b"", 416, {"Content-Range": f"bytes */{len(file.content)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(file.content)}"
        return lambda: self._send(file.content[start:stop], 206, headers)


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.git_hash, "size": len(file.content), "path": path}
    if file.is_large:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def _card(commit: Commit) -> Any:
    text = commit.files["README.md"].content.decode() if "README.md" in commit.files else ""
    block = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def _faults_of_card(data: dict[str, Any]) -> Iterator[str]:
    """What the Hub checks of a model's metadata, as far as it matters here."""
    for key, kind in (("license", str), ("library_name", str), ("pipeline_tag", str), ("tags", list)):
        if key in data and not isinstance(data[key], kind):
            yield f'"{key}" must be a {kind.__name__}'
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            if not {"task", "metrics"} <= result.keys() or not {"type", "name"} <= result.get("dataset", {}).keys():
                yield '"model-index" lacks a task, a data set with type and name, or metrics'
            for metric in result.get("metrics", []):
                if not {"type", "value"} <= metric.keys():
                    yield '"model-index" has a metric without type or value'


NEW_SPACE = """---
title: New
emoji: 🌍
colorFrom: red
colorTo: blue
sdk: gradio
sdk_version: 1.2.3
app_file: app.py
pinned: false
---

Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference
"""
"""README.md of a Space that has just been created."""

_R = r"([\w.-]+/[\w.-]+)"
_API = rf"/api/(models|datasets|spaces)/{_R}"
_ROUTES: list[tuple[str, Callable[..., Callable[[], None]]]] = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET {_API}/auth-check(/write)?", _Handler.auth_check),
    (rf"GET {_API}(?:/revision/(.+))?", _Handler.info),
    (rf"GET {_API}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (rf"POST {_API}/branch/(.+)", _Handler.branch),
    (rf"POST {_API}/preupload/(.+)", _Handler.preupload),
    (rf"POST {_API}/commit/(.+)", _Handler.commit),
    (rf"POST /(datasets/|spaces/|){_R}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (rf"PUT /lfs/(models|datasets|spaces)/{_R}/(\w+)", _Handler.lfs_upload),
    (rf"POST /lfs/(models|datasets|spaces)/{_R}/(\w+)/verify", _Handler.lfs_verify),
    (rf"(?:GET|HEAD) /(datasets/|spaces/)?{_R}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
