"""Whether a model draws new images or repeats those that it was trained on: a score, and a test with a p-value."""

from dataclasses import dataclass

from torch import Tensor

from ddpm_hf.metrics.base import MeanOverImages
from ddpm_hf.metrics.neighbours import kth_nearest, squared_distance_to_kth_neighbour


def authentic(real: Tensor, fake: Tensor) -> Tensor:
    """Which generated images are no copies (Alaa et al. 2022, section 3.3).

    A copy lies nearer to the training image next to it than any other training image does.

    Args:
        real: Features ``(N, D)`` of the training images.
        fake: Features ``(M, D)`` of the generated ones.

    Returns:
        bool ``(M,)``.

    Raises:
        ValueError: there are fewer than two training images.
    """
    if len(real) < 2:
        raise ValueError(f"authenticity was given {len(real)} real images and needs at least 2")
    distances, neighbours = kth_nearest(fake, real, 1)
    return distances > squared_distance_to_kth_neighbour(real, 1)[neighbours]


class Authenticity(MeanOverImages):
    """Share of the generated images that are no copies of real ones, ``authenticity``; see `authentic`."""

    def parts(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """See `MeanOverImages`."""
        return {"authenticity": authentic(real, fake)}


@dataclass(frozen=True)
class CopyingTest:
    """Whether samples lie nearer to the training images than images that nobody trained on do.

    Args:
        p_value: How likely samples so near are, were they no nearer than held-out images.
        share_nearer: Share of all pairs of a sample and a held-out image in which the sample is the nearer one; 1/2
            for a perfect model, 1 for copies.
        samples: Median distance of a sample to its nearest training image.
        held_out: The same of a held-out image.
    """

    p_value: float
    share_nearer: float
    samples: float
    held_out: float

    def __str__(self) -> str:
        says = "nearer to training images than" if self.p_value < SUSPICIOUS else "no nearer to training images than"
        return (
            f"samples lie {says} held-out images do (p = {self.p_value:.2g}; nearer in {self.share_nearer:.0%} of the "
            f"pairs; median distance {self.samples:.3g}, of held-out images {self.held_out:.3g})"
        )


SUSPICIOUS = 0.001
"""Below this p-value, samples are said to be copies."""


def copying_test(train: Tensor, samples: Tensor, held_out: Tensor) -> CopyingTest:
    """Compare distances to the nearest training image by the rank-sum test of Mann & Whitney (1947).

    That is the test for data-copying of Meehan et al. (2020), over all of the space as one cell.

    Args:
        train: Features ``(N, D)`` of the training images.
        samples: ``(M, D)`` of the generated ones.
        held_out: ``(L, D)`` of real ones that were not trained on.
    """
    from scipy.stats import mannwhitneyu  # slow to import, and not needed by most

    of_samples, of_held_out = kth_nearest(samples, train, 1)[0], kth_nearest(held_out, train, 1)[0]
    found = mannwhitneyu(of_samples.cpu().numpy(), of_held_out.cpu().numpy(), alternative="less")
    return CopyingTest(
        p_value=float(found.pvalue),
        share_nearer=1 - float(found.statistic) / (len(samples) * len(held_out)),
        samples=float(of_samples.median().sqrt()),
        held_out=float(of_held_out.median().sqrt()),
    )
