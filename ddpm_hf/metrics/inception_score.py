"""The Inception score by torchmetrics."""

import warnings

import torch
import torchmetrics.image.inception
from torch import Tensor, nn

from ddpm_hf.metrics.base import ImageMetric


class InceptionScore(ImageMetric):
    """Exponential of the information between image and class (Salimans et al. 2016), ``is``, the mean over ten parts.

    Its network gives class scores ``(B, K)``, before the softmax. Real images are not needed. It is torchmetrics' class
    of that name, from a fixed seed.
    """

    def score(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """See `ImageMetric`."""
        with warnings.catch_warnings():  # it says that it holds all features
            warnings.simplefilter("ignore")
            metric = torchmetrics.image.inception.InceptionScore(nn.Identity(), splits=10, sync_on_compute=False)
        metric.update(fake.double())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return {"is": metric.compute()[0]}
