"""The page of benchmarks is what the committed results give, and the runner keeps what it measures."""

import json
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.record import RESULTS, Bar, Record, table

NOT_SUITES = {"__init__", "__main__", "fashion_features", "measure", "page", "plain_loop", "record"}


def test_the_page_is_what_the_results_give() -> None:
    assert page.PAGE.read_text() == page.page(), "run: python -m benchmarks report"


def test_the_runner_knows_every_suite() -> None:
    files = {path.stem for path in Path(page.__file__).parent.glob("*.py")}
    assert files - NOT_SUITES == set(page.SUITES)


def test_every_result_is_of_a_suite_and_says_where_it_is_from() -> None:
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert result["benchmark"] == path.stem in page.SUITES
        assert {"cpu", "threads", "torch", "diffusers", "date"} <= set(result["machine"])
        assert "/" not in str(result["arguments"].get("data", ""))


def test_a_record_is_on_disk_after_each_row_and_goes_on_when_asked(tmp_path: Path) -> None:
    first = Record("suite", {"model": tmp_path / "runs"}, {}, tmp_path / "suite.json")
    first.add({"case": (1, 2), "ms": 3.0})
    written = json.loads((tmp_path / "suite.json").read_text())
    assert written["results"] == [{"case": [1, 2], "ms": 3.0}]
    assert written["arguments"] == {"model": "runs"}  # no folder of this machine
    second = Record("suite", {}, {}, tmp_path / "suite.json")
    assert second.find(case=(1, 2)) is None
    second.resume()
    assert second.find(case=(1, 2)) == {"case": [1, 2], "ms": 3.0}
    second.add({"case": (3,)})
    assert len(json.loads((tmp_path / "suite.json").read_text())["results"]) == 2


@pytest.mark.parametrize(("measured", "is_met"), [(0.8, False), (1.0, True), (1.1, True), (1.3, False)])
def test_a_bar_has_two_sides(measured: float, is_met: bool) -> None:
    assert Bar("x", measured, at_most=1.2, at_least=1.0).is_met is is_met


def test_a_table_rounds_and_separates() -> None:
    assert (
        table(["a", "b", "c", "d"], [[1234, 0.98765, 1234.5, None]]).splitlines()[-1] == "| 1,234 | 0.988 | 1,234 |  |"
    )
