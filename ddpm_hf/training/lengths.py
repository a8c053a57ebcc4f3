"""Relative lengths of averages as settings have them. Loads no numpy."""

from ddpm_hf.settings import check

SHORTEST, LONGEST = 0.001, 0.28
"""That of the plain mean, in which nothing fades, is 0.2887."""

SNAPSHOTS = 32
"""How many snapshots of averages a run makes by default: enough for lengths from 0.02 to 0.25."""


def check_length(name: str, sigma_rel: float) -> None:
    """Refuse a relative length that no average has, or that is shorter than the steps of any run.

    Args:
        name: What it is called where it was given.
        sigma_rel: The length.

    Raises:
        ValueError: it is out of range.
    """
    check(SHORTEST <= sigma_rel <= LONGEST, name, sigma_rel, f"from {SHORTEST} to {LONGEST}")
