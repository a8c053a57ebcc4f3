"""The benchmarks' runner, the file of results and the page: not the measuring itself, which takes a quiet hour."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks.measure import MIB, in_new_process, in_turn, interleave, peak_memory, ratio_of, resident_memory
from benchmarks.memorisation import last, lowest, measured
from benchmarks.page import PAGE, SUITES, page, result_of, suite
from benchmarks.record import RESULTS, Bar, Record, table

FOLDER = Path(runner.__file__).parent
NOT_SUITES = {"__init__", "__main__", "small_features", "measure", "page", "plain_loop", "record", "time_to_quality"}
MEASURED = [name for name in SUITES if result_of(name).exists()]


def test_every_suite_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - NOT_SUITES == set(SUITES)
    assert {path.stem for path in RESULTS.glob("*.json")} <= set(SUITES)


def test_the_page_is_what_the_results_give() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m benchmarks report"


@pytest.mark.parametrize("name", MEASURED)
def test_reports_run_on_the_committed_results(name: str) -> None:
    content = json.loads(result_of(name).read_text())
    assert content.keys() == {"benchmark", "arguments", "machine", "results"}
    assert content["benchmark"] == name
    assert "|" in suite(name).report(content["results"])


def test_a_row_changes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(result_of("sampling").read_text())
    for row in content["results"]:
        row["ratio"] = 0.5
    (tmp_path / "sampling.json").write_text(json.dumps(content))
    monkeypatch.setattr("benchmarks.page.RESULTS", tmp_path)
    text = page()
    assert "| 2.00 | met |" in text
    assert "benchmarks cache" not in text


def test_the_readme_has_the_committed_sizes() -> None:
    from benchmarks.sizes import short_report

    rows = json.loads(result_of("sizes").read_text())["results"]
    assert f"<!-- sizes -->\n{short_report(rows)}\n" in (FOLDER.parent / "README.md").read_text()


def test_a_bar_is_met_or_missed() -> None:
    assert Bar("", 0.93, at_most=0.93).is_met
    assert not Bar("", 0.94, at_most=0.93).is_met
    assert Bar("", 50.0, at_least=50).is_met
    assert not Bar("", 49.0, at_least=50).is_met
    assert Bar("", 1.0, at_least=0.5).wanted == "at least 0.5"


def record_in(folder: Path) -> Record:
    options = {"data": folder / "secret" / "images.parquet", "steps": [5, 10]}
    return Record("suite", options, {"cpu": "quick"}, folder / "results" / "suite.json")


def test_the_file_is_whole_after_each_row(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    for i in range(2):
        record.add({"i": i, "of": {i: 1.5}})
        content = json.loads((tmp_path / "results" / "suite.json").read_text())
        assert content["results"] == record.rows == [{"i": j, "of": {str(j): 1.5}} for j in range(i + 1)]
    assert content["arguments"] == {"data": "images.parquet", "steps": [5, 10]}
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["suite.json"]


def test_a_suite_that_asks_goes_on_and_one_that_does_not_begins_anew(tmp_path: Path) -> None:
    record_in(tmp_path).add({"seed": 0, "name": "a"})
    asking = record_in(tmp_path)
    asking.resume()
    assert asking.find(seed=0) == {"seed": 0, "name": "a"}
    assert asking.find(seed=1) is None
    asking.add({"seed": 1, "name": "a"})
    assert record_in(tmp_path).find(seed=1) is None
    assert [row["seed"] for row in asking.rows] == [0, 1]
    anew = record_in(tmp_path)
    anew.add({"seed": 2})
    assert json.loads((tmp_path / "results" / "suite.json").read_text())["results"] == [{"seed": 2}]


def test_figures_of_two_machines_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_in(tmp_path).add({"seed": 0})
    other = Record("suite", {}, {"cpu": "slow"}, tmp_path / "results" / "suite.json")
    with pytest.raises(ValueError, match=r"suite\.json was measured with cpu quick; go on there, or give --output"):
        other.resume()
    content = json.loads(result_of("unet").read_text())
    content["machine"]["torch"] = "1.0"
    (tmp_path / "unet.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        runner.measure("unet", ["--threads", "1", "--output", str(tmp_path / "unet.json")])
    assert "was measured with" in capsys.readouterr().err
    assert json.loads((tmp_path / "unet.json").read_text()) == content


def test_a_table_keeps_three_digits() -> None:
    expected = "| a | b |\n| --- | --- |\n| 1,234 | 0.500 |\n| x | 12,346 |\n|  | 99.9 |"
    assert table(["a", "b"], [[1234, 0.5], ["x", 12345.6], [None, 99.9]]) == expected
    assert table(["a"], [[99.96]]).splitlines()[-1] == "| 100 |"


def test_the_runner_measures_reports_and_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a suite of which only the measuring is replaced."""
    rows = json.loads(result_of("sampling").read_text())["results"]
    monkeypatch.setattr(suite("sampling"), "run", lambda arguments, record: [record.add(row) for row in rows])
    runner.measure("sampling", ["--threads", "1", "--rounds", "3", "--output", str(tmp_path / "new.json")])
    content = json.loads((tmp_path / "new.json").read_text())
    assert content["results"] == rows
    assert content["arguments"] == {"threads": 1, "rounds": 3}
    said = capsys.readouterr().out
    assert suite("sampling").report(rows) in said
    assert "CIFAR-10, DDIM, batch 16: images per second over diffusers'" in said


def test_calls_go_in_turn_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    values = itertools.count()

    def call(name: str) -> int:
        order.append(name)
        return next(values)

    found = in_turn({name: lambda name=name: call(name) for name in "ab"}, rounds=2)
    assert "".join(order) == "baabba"
    assert found == {"a": [2, 5], "b": [3, 4]}
    assert in_turn({"a": lambda: 1}, rounds=3, is_warm=True) == {"a": [1, 1, 1]}


def test_a_ratio_is_of_the_rounds() -> None:
    """Where the machine is ten times slower in one round, the ratio of medians would be another."""
    ratio = ratio_of([1.0, 20.0, 3.0], [2.0, 40.0, 6.0])
    assert ratio == {"ratio": 0.5, "ratio_low": 0.5, "ratio_high": 0.5}
    assert ratio_of([3.0], [2.0])["ratio"] == 1.5


def test_interleaved_times_are_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: clock[0])

    def takes(seconds: float) -> None:
        clock[0] += seconds

    times = interleave(lambda: takes(0.25), lambda: takes(0.5), rounds=3, repeats=2)
    assert times == {"ours_ms": 250.0, "theirs_ms": 500.0, "ratio": 0.5, "ratio_low": 0.5, "ratio_high": 0.5}


def peak_of(mib: int) -> float:
    before = resident_memory()
    torch.ones(mib * MIB, dtype=torch.uint8)
    return (peak_memory() - before) / MIB


def test_the_peak_is_of_the_new_process_alone() -> None:
    held = torch.ones(300 * MIB, dtype=torch.uint8)  # more than a new process takes, which has the same libraries
    assert 99 < in_new_process(peak_of, 100) < 130
    assert 199 < in_new_process(peak_of, 200) < 230
    del held


@pytest.mark.slow
def test_a_model_that_learns_a_hundred_digits_by_heart_is_caught(tmp_path: Path) -> None:
    """In a third of the benchmark's steps."""
    row = in_new_process(measured, "train[:100]", 800, tmp_path)
    assert last(row["held_out_loss"]) > 1.1 * lowest(row["held_out_loss"])[1]
    for test in row["tests"].values():
        assert test["authenticity"] < 0.5 * test["authenticity_held_out"]
        assert test["p_value"] < 1e-6
        assert test["share_nearer"] > 0.8
    assert (tmp_path / "memorisation-100.png").exists()
