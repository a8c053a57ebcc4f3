"""One policy of retries: what passes is waited for in sight, and what does not is told at once."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError

from ddpm_hf.http_client import httpx
from ddpm_hf.hub import repository
from ddpm_hf.hub.downloads import fetched
from ddpm_hf.hub.repository import AT_THE_START, retried


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(repository.time, "sleep", found.append)
    return found


def answering(*statuses: int) -> Iterator[str]:
    for status in statuses:
        response = httpx.Response(status, request=httpx.Request("POST", "http://hub/commit"))
        yield HfHubHTTPError("no", response=response)  # type: ignore[misc]
    yield "done"


def attempt_of(answers: Iterator[object]) -> str:
    answer = next(answers)
    if isinstance(answer, Exception):
        raise answer
    return str(answer)


# 409: another commit is under way; 412: one came in between.
@pytest.mark.parametrize("status", [408, 409, 412, 429, 500, 502, 503, 504])
def test_what_passes_is_waited_for_in_sight(
    status: int, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answering(status, status)
    assert retried(lambda: attempt_of(answers), "me/model") == "done"
    assert waits == [1, 2]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"Note: the Hub answered {status} for me/model; another attempt in {wait} s." for wait in (1, 2)]


@pytest.mark.parametrize("status", [400, 404, 413])
def test_what_does_not_pass_is_told_at_once(status: int, waits: list[float]) -> None:
    answers = answering(status)
    with pytest.raises(HfHubHTTPError):
        retried(lambda: attempt_of(answers), "me/model")
    assert waits == []


def test_waiting_has_an_end(waits: list[float]) -> None:
    answers = answering(*[503] * 100)
    with pytest.raises(HfHubHTTPError):
        retried(lambda: attempt_of(answers), "me/model", AT_THE_START)
    assert sum(waits) <= 15


def test_a_slow_answer_is_told_while_somebody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repository, "SLOW", 0.01)
    told = threading.Event()
    write = sys.stderr.write
    monkeypatch.setattr(sys.stderr, "write", lambda text: (write(text), told.set())[0])
    assert retried(lambda: str(told.wait(5)), "me/model", AT_THE_START) == "True"
    assert "waiting for the Hub" in capsys.readouterr().err


def test_a_download_that_is_right_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[Path] = []

    def fetch() -> Path:
        asked.append(tmp_path)
        return tmp_path

    assert fetched(fetch, "me/model") == tmp_path
    assert len(asked) == 1
