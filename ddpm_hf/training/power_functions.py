r"""Averages with the profile of a power function, and how one is put together from others (Karras et al. 2024).

The average of n updates weighs the weights of the past by

.. math:: p(\tau) = (\gamma + 1)\, \tau^\gamma / n^{\gamma + 1}, \qquad 0 \le \tau \le n,

so it follows the run at a fixed share of its length, where an exponential average follows it at a fixed distance. That
share, the standard deviation of p over n, is its relative length, sigma_rel. With theta(tau) the weights after update
ceil(tau), the average that :func:`share_of_update` tracks is the integral of p theta, with no error of discretisation.
Therefore averages of several lengths and times combine to another one as well as their profiles do, and the inner
products of profiles are known in closed form. All of it is in float64.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_hf.training.lengths import check_length

Vector = npt.NDArray[np.float64]

WORST = 0.1
"""The largest relative error of a profile with which an average still passes for the wanted one."""


class Profile(NamedTuple):
    """Which average it is.

    Attributes:
        sigma_rel: Its relative length.
        time: Updates that it has seen, at least 1.
    """

    sigma_rel: float
    time: int


def exponent_of(sigma_rel: float) -> float:
    r"""The exponent of a relative length.

    .. math:: \gamma^3 + 7 \gamma^2 + (16 - \sigma^{-2}) \gamma + 12 - \sigma^{-2} = 0

    has one positive root where sigma is below that of the plain mean, as the signs of its terms change once.

    Raises:
        ValueError: the length is out of range.
    """
    check_length("sigma_rel", sigma_rel)
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def sigma_rel_of(exponent: float) -> float:
    """The relative length of an exponent: the standard deviation of the profile on [0, 1]."""
    return math.sqrt((exponent + 1) / (exponent + 3)) / (exponent + 2)


def share_of_update(exponent: float, update: int) -> float:
    r"""The share of the newest weights in the average after the n-th update: all of it after the first.

    .. math:: 1 - (1 - 1/n)^{\gamma + 1}
    """
    return 1.0 if update == 1 else -math.expm1((exponent + 1) * math.log1p(-1 / update))


def inner_products(one: Sequence[Profile], other: Sequence[Profile]) -> Vector:
    """The integrals of the products of profiles, ``(len(one), len(other))``.

    Both factors are powers of tau up to the smaller time, so that each integral is that of one power.
    """
    (a, s), (b, t) = _columns(one), _columns(other)
    a, s = a[:, None], s[:, None]
    both = np.minimum(s, t)
    # Ratios to the times, rather than powers of these, which overflow.
    powers: Vector = (both / s) ** a * (both / t) ** b
    products: Vector = (a + 1) * (b + 1) / (a + b + 1) * powers * both / (s * t)
    return products


def combination(stored: Sequence[Profile], wanted: Profile) -> tuple[Vector, float]:
    """What to multiply stored averages with, so that their sum has the wanted profile.

    Least squares in the profiles, with factors that add up to 1, as those of an average do.

    Args:
        stored: Profiles of the averages that there are; the same one may be there twice.
        wanted: Profile of the average to build.

    Returns:
        Factors ``(len(stored),)``, and the relative error of the profile: the norm of the difference over that of the
        wanted one.
    """
    gram, towards = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    square = inner_products([wanted], [wanted])[0, 0]
    # In units in which each profile has the norm 1, with a multiplier for the sum. What is there twice, or as good as
    # twice, gives the smallest of the factors that are equally right.
    norms = np.sqrt(gram.diagonal())
    sums = norms.min() / norms
    system = np.block([[gram / np.outer(norms, norms), sums[:, None]], [sums[None], np.zeros((1, 1))]])
    right = np.append(towards / norms, norms.min())
    factors: Vector = np.linalg.lstsq(system, right, rcond=1e-13)[0][:-1] / norms
    factors /= factors.sum()
    error = square - 2 * factors @ towards + factors @ gram @ factors
    return factors, math.sqrt(max(error, 0) / square)


def _columns(profiles: Sequence[Profile]) -> tuple[Vector, Vector]:
    """Exponents and times."""
    exponents = {length: exponent_of(length) for length in {profile.sigma_rel for profile in profiles}}
    return (
        np.array([exponents[profile.sigma_rel] for profile in profiles]),
        np.array([profile.time for profile in profiles], dtype=np.float64),
    )
