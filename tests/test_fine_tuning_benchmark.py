"""What the suite of fine-tuning concludes from its rows: by hand, on rows whose answer is known."""

from typing import Any

import pytest

from benchmarks import fine_tuning as suite


def rows(tuned: list[float]) -> list[dict[str, Any]]:
    """Random weights end at 2 on average; the other start has `tuned` at the marks, and other rates are worse."""
    falling = [9.0 - i for i in range(len(suite.MARKS) - 1)]
    found: list[dict[str, Any]] = [{"start": "fashion_mnist", "weights": "", "fid": 40.0, "fid_of_learned_digits": 5.0}]
    for seed in suite.SEEDS:
        for rate in (suite.LEARNING_RATE, *(suite.OTHER_RATES if seed == 0 else ())):
            worse = 0.0 if rate == suite.LEARNING_RATE else 1.0
            for start, fids in (("random", [*falling, 2.0]), ("fashion_mnist", tuned)):
                marks = {str(mark): fid + worse + (seed - 1) for mark, fid in zip(suite.MARKS, fids, strict=True)}
                found.append({"start": start, "seed": seed, "learning_rate": rate, "marks": marks})
    return found


def test_the_bar_compares_the_steps_to_where_random_weights_end() -> None:
    ahead = [9.0, 8.0, 3.0, *[1.0] * (len(suite.MARKS) - 3)]  # 2 halfway between the marks 200 and 300
    [bar] = suite.bars(rows(ahead))
    assert bar.measured == pytest.approx(800 / 250)
    assert bar.is_met
    [never] = suite.bars(rows([2.5] * len(suite.MARKS)))
    assert never.measured == 0
    assert not never.is_met


def test_a_curve_that_begins_below_is_there_at_its_first_mark() -> None:
    assert suite.steps_to(3.0, {50: [2.0, 4.0], 100: [1.0, 1.0]}) == 50
    assert suite.steps_to(2.0, {50: [2.0, 4.0], 100: [1.0, 1.0]}) == 75
    assert suite.steps_to(0.5, {50: [2.0, 4.0], 100: [1.0, 1.0]}) is None


def test_the_tables_have_all_seeds_and_rates() -> None:
    report = suite.report(rows([3.0] * len(suite.MARKS)))
    assert "| 800 | 2.00 ± 1.00 | 3.00 ± 1.00 |" in report
    assert "| 0 |  | 40.00 |" in report
    assert "| 0.004 | 5.00 | 3.00 | 2.00 | 3.00 |" in report
    assert "| FID 2 | 800 |  |  |" in report
    assert "themselves have an FID of 5.00" in report
