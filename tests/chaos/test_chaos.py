"""A short slice of the chaos; python -m tests.chaos --minutes 60 is the whole."""

import random
from pathlib import Path

import pytest

from tests.chaos.launched import LAUNCHERS
from tests.chaos.stories import Account, Unbroken, differences, story
from tests.runs import finished


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_whatever_strikes_a_run_it_ends_as_an_unbroken_one(tmp_path: Path, launcher: str) -> None:
    account = Account()
    story(random.Random(launcher), launcher, tmp_path / "run", Unbroken(tmp_path), account)
    assert not account.faults
    assert account.strikes


@pytest.mark.slow
def test_differences_are_seen(tmp_path: Path) -> None:
    run, other = (finished(tmp_path / name, "--training.steps", 24, "--seed", i) for i, name in enumerate("ab"))
    assert not differences(run, run)
    (run / ".x.partial").touch()
    found = " ".join(differences(run, other))
    for what in ("other tensors", "another log", "other files ['.x.partial']", "left ", "another unet/"):
        assert what in found
