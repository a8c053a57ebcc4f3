"""Values against annotations: what is taken, and the sentence of what is not."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from ddpm_hf.settings import as_int, as_ints, check_types


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, np.int64(3)),
        (float, 3),
        (float, np.float32(0.5)),
        (bool, True),
        (int | None, None),
        (int | tuple[int, int] | None, [8, 8]),
        (tuple[str, ...], []),
        (Sequence[float] | None, np.array([0.1, 0.2])),
        (list[float] | None, [1, 2.5]),
        (Any, object()),
        (Literal["a", "b"], "a"),
        (dict[str, int], {}),
    ],
)
def test_what_an_annotation_takes(kind: Any, value: Any) -> None:
    check_types({"x": value, "other": None}, {"x": kind, "absent": int})


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (int, True, "x=True must be a whole number."),
        (int, 1.0, "x=1.0 must be a whole number."),
        (float, float("nan"), "x=nan must be a number."),
        (float, "1", "x='1' must be a number."),
        (float, 2**64, "x=18446744073709551616 must be a number."),
        (list[float], [10**400], "must be a list of numbers."),
        (bool, 1, "x=1 must be true or false."),
        (str | None, 3, "x=3 must be a name or None."),
        (tuple[int, int], [8], r"x=\[8\] must be a list of 2 whole numbers."),
        (list[float], [1, "2"], "must be a list of numbers."),
        (Sequence[float], "12", "x='12' must be a list of numbers."),
    ],
)
def test_what_it_does_not_take(kind: Any, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_types({"x": value}, {"x": kind})


def test_integers_in_rows() -> None:
    assert as_int("n", np.uint8(3)) == 3
    assert as_ints("n", range(3)) == as_ints("n", np.arange(3)) == [0, 1, 2]
    for endless in (range(2**70), range(10**9)):
        with pytest.raises(ValueError, match="n holds more than 10,000,000 integers"):
            as_ints("n", endless)
    with pytest.raises(ValueError, match="must be a list of integers"):
        as_ints("n", np.zeros((2, 2), int))
