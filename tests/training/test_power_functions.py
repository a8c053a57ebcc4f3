"""The closed forms of power-function averages against numeric integration and against the averages themselves."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

from ddpm_hf.training.lengths import LONGEST, SHORTEST
from ddpm_hf.training.power_functions import (
    WORST,
    Profile,
    combination,
    exponent_of,
    inner_products,
    share_of_update,
    sigma_rel_of,
)

LENGTHS = [SHORTEST, 0.01, 0.05, 0.1, 0.2, LONGEST]


def value(profile: Profile, tau: float) -> float:
    """The profile by its definition."""
    exponent, time = exponent_of(profile.sigma_rel), profile.time
    return (exponent + 1) * (tau / time) ** exponent / time if tau <= time else 0.0


@pytest.mark.parametrize("length", LENGTHS)
def test_the_exponent_is_that_of_the_length_and_back(length: float) -> None:
    exponent = exponent_of(length)
    assert exponent > 0
    assert sigma_rel_of(exponent) == pytest.approx(length, rel=1e-12)
    profile, peak = Profile(length, 1), [1 - min(0.5, 20 * length)]
    mean = quad(lambda tau: tau * value(profile, tau), 0, 1, points=peak, epsabs=1e-14)[0]
    square = quad(lambda tau: (tau - mean) ** 2 * value(profile, tau), 0, 1, points=peak, epsabs=1e-16)[0]
    assert math.sqrt(square) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("length", [0.0, SHORTEST / 2, 0.2887, math.nan, math.inf])
def test_a_length_that_no_average_has_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match=r"sigma_rel is .* and must be from 0\.001 to 0\.28"):
        exponent_of(length)


def test_inner_products_are_integrals() -> None:
    profiles = [Profile(length, time) for length in (0.03, 0.1, LONGEST) for time in (3, 1000, 1100)]
    found = inner_products(profiles, profiles)
    for i, one in enumerate(profiles):
        for j, other in enumerate(profiles):
            end = min(one.time, other.time)
            points = [0.5 * end, 0.9 * end]
            expected = quad(lambda tau: value(one, tau) * value(other, tau), 0, end, points=points, epsabs=0)[0]  # noqa: B023
            assert found[i, j] == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(inner_products([Profile(SHORTEST, 1)], [Profile(SHORTEST, 10**9)])).all()


@pytest.mark.parametrize("length", [0.02, 0.1, 0.25])
def test_tracked_averages_weigh_the_past_by_the_integral_of_the_profile(length: float) -> None:
    """The weight of update k is the integral of the profile from k - 1 to k: nothing is lost by steps."""
    updates, exponent = 40, exponent_of(length)
    weights = np.zeros(updates)
    for update in range(1, updates + 1):
        share = share_of_update(exponent, update)
        weights *= 1 - share
        weights[update - 1] += share
    edges = (np.arange(updates + 1) / updates) ** (exponent + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-10, atol=1e-17)


def stored(count: int, lengths: tuple[float, ...] = (0.05, 0.1), time: int = 3200) -> list[Profile]:
    return [Profile(length, time * i // count) for i in range(1, count + 1) for length in lengths]


@pytest.mark.parametrize("length", [0.03, 0.05, 0.075, 0.15, 0.2])
def test_the_error_is_that_of_the_combined_profile(length: float) -> None:
    profiles, wanted = stored(8), Profile(length, 3200)
    factors, error = combination(profiles, wanted)
    assert factors.sum() == pytest.approx(1, abs=1e-12)

    def off(tau: float) -> float:
        there = sum(factor * value(profile, tau) for factor, profile in zip(factors, profiles, strict=True))
        return float(value(wanted, tau) - there) ** 2

    edges = [3200 * i / 8 for i in range(9)]
    square = sum(quad(off, a, b, limit=200)[0] for a, b in pairwise(edges))
    norm = quad(lambda tau: value(wanted, tau) ** 2, 0, 3200, points=[2400, 3000])[0]
    assert error == pytest.approx(math.sqrt(square / norm), rel=1e-4, abs=1e-7)


def test_no_other_factors_do_better() -> None:
    profiles, wanted = stored(6), Profile(0.2, 3200)
    factors, error = combination(profiles, wanted)
    gram, towards = inner_products(profiles, profiles), inner_products(profiles, [wanted])[:, 0]
    square = inner_products([wanted], [wanted])[0, 0]
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1):
        change = rng.normal(size=len(factors)) * size
        other = factors + change - change.mean()  # which add up to 1 as well
        assert math.sqrt((square - 2 * other @ towards + other @ gram @ other) / square) > error


@pytest.mark.parametrize(("count", "worst"), [(16, 0.04), (32, 0.012), (128, 0.001)])
def test_more_snapshots_give_a_better_profile(count: int, worst: float) -> None:
    """And the factors stay small, so that rounding in the snapshots does too."""
    for length in (0.03, 0.04, 0.075, 0.15, 0.2):
        factors, error = combination(stored(count), Profile(length, 3200))
        assert error < worst
        assert np.abs(factors).sum() < 25


def test_what_is_stored_is_found_as_it_is_and_twice_is_no_trouble() -> None:
    profiles = stored(8)
    factors, error = combination([*profiles, *profiles], Profile(0.1, 3200))
    assert error < 1e-6
    assert factors[15] + factors[31] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("lengths", [(0.05,), (0.1,), (0.05, 0.1)])
def test_what_cannot_be_represented_has_a_large_error(lengths: tuple[float, ...]) -> None:
    one = [Profile(length, 3200) for length in lengths]
    assert combination(one, Profile(0.2, 3200))[1] > WORST
    assert combination(stored(8, lengths), Profile(0.01, 3200))[1] > WORST
