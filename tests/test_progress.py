"""What is told of work under way: a bar in a terminal, lines through logging without one, nothing where it is quiet."""

import io
import logging
import subprocess
import sys
import time

import pytest

from ddpm_hf import progress
from ddpm_hf.progress import Progress, duration, rate


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Lines are due after a moment."""
    monkeypatch.setattr(progress, "SHORTEST", 0.005)
    caplog.set_level(logging.INFO, "ddpm_hf")
    return caplog


def wait_for(text: str, caplog: pytest.LogCaptureFixture) -> None:
    end = time.monotonic() + 20
    while not any(text in line for line in caplog.messages):
        assert time.monotonic() < end, caplog.messages
        time.sleep(0.002)


def test_without_a_terminal_lines_say_how_far_it_is(soon: pytest.LogCaptureFixture) -> None:
    with Progress("sampling", 1500, "image", shown=True) as told:
        wait_for("sampling: 0 of 1,500 images, ", soon)  # also while the first of them takes long
        assert soon.messages[0].endswith(" s so far")
        told.advance(500)
        wait_for("sampling: 500 of 1,500 images, ", soon)
        assert soon.messages[-1].endswith(" s left")
        assert " images/s, " in soon.messages[-1]
        told.advance(4000)
        assert told.done == 1500
    assert soon.messages[-1].startswith("sampling: 1,500 images in 0.")
    assert {record.name for record in soon.records} == {"ddpm_hf.progress"}
    count = len(soon.messages)
    time.sleep(0.02)
    assert len(soon.messages) == count


def test_work_that_fails_is_not_called_done(soon: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError), Progress("decoding", 2, "image", shown=True):  # noqa: PT012
        wait_for("decoding: 0 of 2 images", soon)
        raise KeyError
    assert not [line for line in soon.messages if " images in " in line]


def test_quiet_and_quick_work_gives_no_line(
    soon: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("sampling", 3, "image", shown=False) as told:
        time.sleep(0.02)
        told.advance(3)
    monkeypatch.setattr(progress, "SHORTEST", 10.0)
    with Progress("sampling", 3, "image", shown=True) as told:
        told.advance(3)
    assert soon.messages == []
    assert capsys.readouterr().err == ""


def test_in_a_terminal_a_bar_takes_the_place_of_lines(
    soon: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "has_terminal", lambda: True)
    for shown in (True, False):
        with Progress("features", 2, "image", shown) as told:
            time.sleep(0.02)
            told.advance(2)
        bar = capsys.readouterr().err
        assert ("features" in bar, "2/2" in bar) == (shown, shown)
    assert soon.messages == []


def test_a_notebook_counts_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress.has_terminal()
    monkeypatch.setattr(sys, "stderr", type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})())
    assert progress.has_terminal()


def test_times_and_rates_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.04, 99, 150, 9000, 8e6)] == [
        "0.0 s",
        "99.0 s",
        "2.5 min",
        "2.5 h",
        "92.6 days",
    ]
    assert [rate(value, "image") for value in (0.01234, 12.34, 12345)] == [
        "0.0123 images/s",
        "12.3 images/s",
        "12,345 images/s",
    ]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("speak_in_lines(quiet=False)", "how far\nbeware\n"),
        ("speak_in_lines(quiet=False); speak_in_lines(quiet=False); logging.basicConfig()", "how far\nbeware\n"),
        ("speak_in_lines(quiet=True)", "beware\n"),
        ("", "beware\n"),  # from Python, without a command
        (
            "logging.basicConfig(level='INFO', format='my own: %(message)s'); speak_in_lines(quiet=False)",
            "my own: how far\nmy own: beware\n",
        ),
    ],
)
def test_a_command_prints_lines_where_nobody_else_has_arranged_them(before: str, said: str) -> None:
    lines = [
        "import logging; from ddpm_hf.progress import speak_in_lines",
        before,
        "log = logging.getLogger('ddpm_hf.some.thing'); log.info('how far'); log.warning('beware')",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", said)
