"""ddpm-hf-demo before a page is there: what is missing, and what cannot be."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from ddpm_hf.cli import demo
from tests.demo.models import make_model


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["ddpm-hf-demo", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_without_gradio_the_command_names_what_installs_it_before_it_looks_at_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    said = refusal(monkeypatch, capsys, "/no/such/folder")
    assert (
        said
        == "ddpm-hf-demo: error: the page needs Gradio, which is not installed; run 'pip install \"ddpm-hf[demo]\"'\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/no/such/folder"], "/no/such/folder does not exist"),
        (["m", "--port", 70000], "port is 70000 and must be null or from 1 to 65535"),
        (["m", "--threads", 0], "threads is 0 and must be at least 1"),
        (["m", "--share", "true"], "which is no setting"),
        (["nobody/nothing"], "nobody/nothing"),
        ([], "model"),
    ],
)
def test_wrong_settings_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[Any], sentence: str
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: name)
    assert sentence in refusal(monkeypatch, capsys, *words)


@pytest.mark.parametrize("address", [["--host", "203.0.113.7"], ["--host", "not an address"], ["--port", "taken"]])
def test_an_address_that_cannot_be_used_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, address: list[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: name)
    model = make_model(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [str(taken.getsockname()[1]) if word == "taken" else word for word in address]
        said = refusal(monkeypatch, capsys, model, "--threads", 1, *words)
    assert "cannot be served at" in said
    assert "give another --host or --port" in said
