"""The Inception score by torchmetrics."""

import warnings
from typing import Final

import torch
import torchmetrics.image.inception
from torch import Tensor, nn

from ddpm_hf.metrics.base import ImageMetric
from ddpm_hf.metrics.table import METRICS

PARTS: Final = 10
FEWEST_IMAGES: Final = METRICS["is"].fewest_images


class InceptionScore(ImageMetric):
    """Exponential of the information between image and class (Salimans et al. 2016), ``is``, the mean over ten parts.

    Its network gives class scores ``(B, K)``, before the softmax. Real images are not needed. It is torchmetrics' class
    of that name, from a fixed seed. A part of one image has the score 1, whatever it shows, and one of n images has at
    most n.
    """

    def score(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """See `ImageMetric`."""
        if len(fake) < FEWEST_IMAGES or fake.shape[1] < 2:
            raise ValueError(
                f"the Inception score was given {len(fake)} images with {fake.shape[1]} class scores each and needs at "
                f"least {FEWEST_IMAGES} images, two for each of its {PARTS} parts, and 2 classes"
            )
        with warnings.catch_warnings():  # it says that it holds all features
            warnings.simplefilter("ignore")
            metric = torchmetrics.image.inception.InceptionScore(nn.Identity(), splits=PARTS, sync_on_compute=False)
        metric.update(fake.double())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return {"is": metric.compute()[0]}

    def notes(self) -> list[str]:
        """See `ImageMetric`."""
        _, fake = self._sides()
        images, classes = fake.shape
        if images >= PARTS * classes:
            return []
        return [
            f"the Inception score of {images} images in {classes} classes cannot exceed {-(-images // PARTS)}, the "
            f"number of images in each of its {PARTS} parts; compare it with scores of equally many images only"
        ]
