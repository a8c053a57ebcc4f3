"""How many images one way of training needs to the quality at which another ends, with an interval over seeds."""

import math
import random
import statistics
from collections.abc import Mapping, Sequence

RESAMPLES = 2000

Curve = Mapping[int, Sequence[float]]
"""Images seen -> the FID of each seed, of a run of just that length."""


def images_to(target: float, curve: Mapping[int, float]) -> float:
    """Images after which a curve of mean FIDs has come down to ``target``.

    Between two lengths log FID is a line over log images. Below the shortest nothing is known, so that length counts;
    a target that none of them reaches takes infinitely many.
    """
    lengths = sorted(curve)
    reached = next((i for i, length in enumerate(lengths) if curve[length] <= target), None)
    if reached is None:
        return math.inf
    if reached == 0:
        return lengths[0]
    before, after = lengths[reached - 1], lengths[reached]
    share = math.log(curve[before] / target) / math.log(curve[before] / curve[after])
    return before * math.pow(after / before, share)


def times_fewer(curve: Curve, other: Curve) -> dict[str, float]:
    """Images of the other way at its longest over those that this one needs to the same mean FID.

    Returns:
        ``ratio``, and ``low`` and ``high``: 95% of the ratios of seeds drawn anew, with replacement, from those of each
        length (Efron's percentile bootstrap).
    """
    end = max(other)

    def ratio(of_curve: Mapping[int, float], target: float) -> float:
        return end / images_to(target, of_curve)

    means = {images: statistics.fmean(fids) for images, fids in curve.items()}
    stream = random.Random(0)

    def resampled(fids: Sequence[float]) -> float:
        return statistics.fmean(stream.choices(fids, k=len(fids)))

    ratios = sorted(
        ratio({images: resampled(fids) for images, fids in curve.items()}, resampled(other[end]))
        for _ in range(RESAMPLES)
    )
    edge = round(0.025 * RESAMPLES)
    return {"ratio": ratio(means, statistics.fmean(other[end])), "low": ratios[edge], "high": ratios[-1 - edge]}
