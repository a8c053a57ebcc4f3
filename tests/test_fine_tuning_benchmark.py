"""What the suite of fine-tuning concludes from its rows: by hand, on rows whose answer is known."""

from typing import Any

from benchmarks import fine_tuning as suite


def rows(tuned: list[float]) -> list[dict[str, Any]]:
    """Random weights end at 2 on average, best at the middle rate; the other start has `tuned` at the marks."""
    falling = [9.0 - i for i in range(len(suite.MARKS) - 1)]
    found: list[dict[str, Any]] = [{"start": "fashion_mnist", "weights": "", "fid": 40.0, "fid_of_learned_digits": 5.0}]
    for seed in suite.SEEDS:
        for rate in suite.LEARNING_RATES if seed == 0 else suite.LEARNING_RATES[1:2]:
            worse = 0.0 if rate == suite.LEARNING_RATES[1] else 1.0
            for start, fids in (("random", [*falling, 2.0]), ("fashion_mnist", tuned)):
                marks = {str(mark): fid + worse + (seed - 1) for mark, fid in zip(suite.MARKS, fids, strict=True)}
                found.append({"start": start, "seed": seed, "learning_rate": rate, "marks": marks})
    return found


def test_the_bar_compares_the_steps_to_the_best_that_random_weights_reach() -> None:
    ahead = [9.0, 8.0, 2.0, *[1.5] * (len(suite.MARKS) - 3)]
    [bar] = suite.bars(rows(ahead))
    assert bar.measured == suite.MARKS[-1] / suite.MARKS[2]
    assert bar.is_met
    [never] = suite.bars(rows([2.5] * len(suite.MARKS)))
    assert never.measured == 0
    assert not never.is_met


def test_the_learning_rate_is_the_best_of_the_first_seed_and_the_table_has_all_seeds() -> None:
    found = rows([3.0] * len(suite.MARKS))
    assert suite.best_rate(found, "random") == suite.LEARNING_RATES[1]
    report = suite.report(found)
    assert "| 800 | 2.00 \u00b1 1.00 | 3.00 \u00b1 1.00 |" in report
    assert "| 0 |  | 40.00 |" in report
    assert "5.00 themselves" in report
