"""The GPU's suite in small, on a CPU: it runs to its end, leaves its files, and survives the failure of a part."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import race, rates
from benchmarks.gpu.runner import OF_PAGE, PAGE, main, page


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tiny", "--minutes", "0.4", "--output", str(tmp_path)]  # the network stops there, the others end
    main([*options, "--parts", "network", "rates", "truth"])
    main(["--tiny", "--minutes", "0.1", "--output", str(tmp_path), "--parts", "race"])
    rows = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert not [row for row in rows if "error" in row]
    assert {row["part"] for row in rows} >= {"truth", "sampler", "network", "sampling", "metrics", "classifier", "race"}
    assert all(row["output"] < 1e-4 for row in rows if row["part"] == "truth" and row["precision"] == "float32")
    assert len(list(tmp_path.glob("*.png"))) >= 2
    assert "| loop | seconds |" in capsys.readouterr().out
    before = [row for row in rows if row["part"] == "race"][-1]
    main(["--tiny", "--minutes", "0.1", "--output", str(tmp_path), "--parts", "race"])
    after = json.loads((tmp_path / "gpu.json").read_text())["results"][-1]
    assert (after["part"], after["who"]) == ("race", before["who"])
    assert after["step"] > before["step"]


def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(rates, "run", fail)
    monkeypatch.setattr(race, "run", lambda *_: None)
    main(["--tiny", "--minutes", "1", "--output", str(tmp_path), "--parts", "rates", "race"])
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert row == {"part": "error", "in": "rates", "error": "RuntimeError: no memory left"}


def test_the_page_is_what_the_results_give() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m benchmarks gpu --report"
    assert list(OF_PAGE.glob("*.json"))
