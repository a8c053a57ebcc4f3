"""The fuzzer finds what is planted, and counts it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz import outcomes
from tests.fuzz.outcomes import Fault, Refused, outcome_of, status_of
from tests.fuzz.rounds import Counts, Target, one_round, run_for, table
from tests.fuzz.values import DAMAGES, Damage


def found_by(check: Callable[[Any], None]) -> Counts:
    """What two rounds on integers find, however long they take."""
    counts = Counts()
    for number in (0, 1):
        one_round(Target(st.integers(), lambda place: check, per_round=300), check, counts, number)
    return counts


def test_a_planted_fault_is_found_and_made_small() -> None:
    def check(number: int) -> None:
        if number > 500:
            raise Fault("silent difference", "planted")

    found = found_by(check)
    assert found.inputs > 100
    assert found.kinds == {"silent difference": 1}  # once, however often it comes
    assert str(list(found.faults.values())).count("501") == 1
    assert "| integers |" in table({"integers": found})


def test_each_target_has_its_turn_until_the_time_is_over(tmp_path: Path) -> None:
    targets = {name: Target(st.integers(), lambda place: lambda number: None, per_round=5) for name in "ab"}
    assert all(counts.inputs for counts in run_for(3, targets, tmp_path, first_seed=0).values())


def test_nothing_is_found_where_nothing_is() -> None:
    assert not found_by(lambda number: None).faults


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("not ours"), KeyError("key"), RuntimeError("size of tensor a")])
def test_an_error_that_the_product_did_not_raise_is_a_traceback(error: Exception) -> None:
    with pytest.raises(Fault, match="traceback"):
        outcome_of(lambda: _raise(error))


def test_a_sentence_of_the_product_is_a_refusal() -> None:
    from ddpm_hf.settings import check

    refused = outcome_of(lambda: check(False, "x", 1, "2"))
    assert refused == Refused("x is 1 and must be 2")
    with pytest.raises(Fault, match="no sentence"):
        outcome_of(lambda: check(False, "x", "a\nb", "2"))


def test_what_takes_too_long_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "LIMIT", 1)
    with pytest.raises(Fault, match="standstill"):
        outcome_of(lambda: time.sleep(3))


def _silent_end() -> None:
    raise SystemExit(3)


def _uncaught() -> None:
    raise RuntimeError("planted")


def _sleeper() -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("main", "what"), [(_silent_end, "status 3 and 0 sentences"), (_uncaught, "planted"), (_sleeper, "standstill")]
)
def test_a_command_must_end_in_time_and_say_why(
    main: Callable[[], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "LIMIT", 20 if main is not _sleeper else 1)
    with pytest.raises(Fault, match=what):
        status_of(main, [], tmp_path / "said")


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_changes_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"step": 12, "record": [1, 2]}')
    Damage(0, kind, 0.5, {"a": 1}).to(path)
    assert path.read_text(errors="replace") != '{"step": 12, "record": [1, 2]}'
