"""The kernel distance (KID) by torchmetrics."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm_hf.metrics.base import ImageMetric
from ddpm_hf.settings import as_int

SUBSET_SIZE = 1000
BOOTSTRAP_SUBSETS = 10
"""Each set of a bootstrap is scored in fewer subsets, to save time."""


class KernelDistance(ImageMetric):
    """Unbiased estimate of the squared distance with a cubic kernel (Binkowski et al. 2018), ``kid``.

    It is torchmetrics' `KernelInceptionDistance` in float64, from a fixed seed, and also for fewer than 1,000 images.

    Args:
        feature: See `ImageMetric`.
        subsets: How many random subsets of at most 1,000 images the mean is taken over.
        options: See `ImageMetric`.

    Raises:
        ValueError: there are no subsets.
    """

    def __init__(self, feature: nn.Module | None = None, subsets: int = 100, **options: Any) -> None:
        super().__init__(feature, **options)
        self.subsets = as_int("subsets", subsets)
        if subsets < 1:
            raise ValueError(f"subsets={subsets} must be 1 or more.")

    def score(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """See `ImageMetric`."""
        size = min(SUBSET_SIZE, len(real), len(fake))
        if size < 2:
            raise ValueError(
                f"the kernel distance was given {len(real)} real and {len(fake)} generated images and needs at least 2 "
                "of each; give it more images."
            )
        with warnings.catch_warnings():  # it says that it holds all features
            warnings.simplefilter("ignore")
            metric = KernelInceptionDistance(
                nn.Identity(), subsets=self.subsets, subset_size=size, sync_on_compute=False
            )
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return {"kid": metric.compute()[0]}

    def errors(self, images: Tensor, draws: int) -> dict[str, Tensor]:
        """See `ImageMetric`."""
        subsets, self.subsets = self.subsets, BOOTSTRAP_SUBSETS
        try:
            return super().errors(images, draws)
        finally:
            self.subsets = subsets
