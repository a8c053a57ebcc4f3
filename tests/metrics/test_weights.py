"""Weights from a publisher on this machine: whole, cut, wrong, refused, offline, by a proxy, once for all."""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import close_session, constants
from torch import Tensor, nn

from ddpm_hf.metrics import extractors, weights
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.weights import Source, fetched
from tests.runs import start_processes_of

CONTENT = bytes(range(256)) * 4096  # a MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Publisher:
    """Serves one file, and does with each request what is next in its list.

    Args:
        answers: Statuses, or numbers of bytes after which the connection is closed (above 999); then all is well.
        ranges: What was asked for: the Range header of each request, or None.
    """

    content: bytes = CONTENT
    answers: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""

    def source(self, sha256: str | None = SHA256) -> Source:
        return Source("weights.pt", f"{self.url}/weights.pt", sha256)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    served = Publisher()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers["Range"]
            served.ranges.append(asked)
            served.paths.append(self.path)
            answer = served.answers.pop(0) if served.answers else 200
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            if start >= len(served.content):
                answer = 416
            body = served.content[start:] if answer == 200 or answer > 999 else b""
            self.send_response(200 if body and not start else 206 if body else answer)
            self.send_header("Content-Length", str(len(body)))
            if start and body:
                self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
            self.end_headers()
            self.wfile.write(body[:answer] if answer > 999 else body)
            if answer > 999:
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, a network, and no waiting."""
    monkeypatch.setattr(weights, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what a break may lose; 10 MB usually
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield tmp_path / "ddpm_hf" / "weights"
    close_session()


def names(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.suffix != ".lock")


def test_they_come_once_and_are_kept(publisher: Publisher, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        path = fetched("vgg16", publisher.source())
        assert path == home / "weights.pt"
        assert path.read_bytes() == CONTENT
    assert publisher.ranges == [None]
    assert names(home) == ["weights.pt"]
    assert f"Fetching the weights of the extractor vgg16 from {publisher.url}/weights.pt" in capsys.readouterr().err


def test_a_connection_that_breaks_is_continued(publisher: Publisher) -> None:
    publisher.answers = [300_000, 503]  # and the server fails once in between
    assert fetched("vgg16", publisher.source()).read_bytes() == CONTENT
    assert publisher.ranges == [None, "bytes=300000-", "bytes=300000-"]


@pytest.mark.parametrize("begun", [CONTENT[:1000], b"another file", CONTENT + b"more"])
def test_what_a_killed_process_left(publisher: Publisher, home: Path, begun: bytes) -> None:
    """It is continued if that makes the right file, and begun anew if not."""
    home.mkdir(parents=True)
    (home / ".weights.pt.partial").write_bytes(begun)
    assert fetched("vgg16", publisher.source()).read_bytes() == CONTENT
    assert publisher.ranges == [f"bytes={len(begun)}-", None][: 1 + (begun != CONTENT[:1000])]
    assert names(home) == ["weights.pt"]


def test_nothing_is_continued_that_no_hash_can_prove(publisher: Publisher, home: Path) -> None:
    home.mkdir(parents=True)
    (home / ".weights.pt.partial").write_bytes(CONTENT[:1000])
    assert fetched("vgg16", publisher.source(None)).read_bytes() == CONTENT
    assert publisher.ranges == [None]
    assert (home / "weights.pt.sha256").read_text().strip() == SHA256


def test_another_file_is_refused(publisher: Publisher, home: Path) -> None:
    publisher.content = b"<html>Log in to the network</html>"
    with pytest.raises(ValueError, match=rf"sent a file with the SHA-256 \w+, and .* vgg16 have {SHA256}"):
        fetched("vgg16", publisher.source())
    assert names(home) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4)])
def test_a_server_that_refuses_is_one_sentence(publisher: Publisher, status: int, requests: int) -> None:
    publisher.answers = [status] * 9
    with pytest.raises(ValueError, match=rf"publisher answers {status}; get them with 'curl --create-dirs -Lo .*http"):
        fetched("vgg16", publisher.source())
    assert len(publisher.ranges) == requests


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    source = Source("weights.pt", "http://127.0.0.1:1/weights.pt", None)
    with pytest.raises(ValueError, match=r"cannot be fetched \(.*refused.*\); get them with 'curl") as caught:
        fetched("vgg16", source)
    assert "\n" not in str(caught.value)


def test_nobody_is_asked_offline(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"and HF_HUB_OFFLINE is set; get them with 'curl"):
        fetched("vgg16", publisher.source())
    assert publisher.ranges == []


def test_a_proxy_is_used(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", publisher.url)
    close_session()
    source = Source("weights.pt", "http://publisher.invalid/weights.pt", SHA256)
    assert fetched("vgg16", source).read_bytes() == CONTENT
    assert publisher.paths == ["http://publisher.invalid/weights.pt"]


def test_two_at_once_fetch_once(publisher: Publisher) -> None:
    publisher.answers = [300_000]
    with ThreadPoolExecutor() as pool:
        for path in pool.map(lambda _: fetched("vgg16", publisher.source()), range(2)):
            assert path.read_bytes() == CONTENT
    assert publisher.ranges == [None, "bytes=300000-"]


class Means(nn.Module):
    """With the interface of NVIDIA's VGG16 file."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return images.float().mean(dim=(2, 3))


@pytest.fixture
def vgg16(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    torch.jit.script(Means()).save(str(tmp_path / "vgg16.pt"))  # type: ignore[no-untyped-call]
    publisher.content = (tmp_path / "vgg16.pt").read_bytes()
    monkeypatch.setitem(extractors.SOURCES, "vgg16", publisher.source(None))
    return publisher


def test_a_kept_file_that_changes_is_refused(vgg16: Publisher, home: Path) -> None:
    assert load_extractor("vgg16").sha256 == hashlib.sha256(vgg16.content).hexdigest()
    (home / "weights.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"remove .*weights.pt, and it is fetched anew"):
        load_extractor("vgg16")
    (home / "weights.pt").unlink()
    load_extractor("vgg16")
    assert len(vgg16.ranges) == 2


def load_on_all(home: str, source: Source) -> None:
    accelerator = Accelerator(cpu=True)
    fetch = weights._fetch

    def slowly(name: str, source: Source) -> None:
        assert accelerator.is_main_process
        time.sleep(0.5)
        fetch(name, source)

    weights._fetch, weights.HF_HOME, constants.HF_HUB_OFFLINE = slowly, home, False
    extractors.SOURCES["vgg16"] = source
    load_extractor("vgg16", accelerator=accelerator)


def test_the_main_process_fetches_for_all(vgg16: Publisher, tmp_path: Path) -> None:
    start_processes_of(2, load_on_all, str(tmp_path), vgg16.source(None))
    assert vgg16.ranges == [None]
