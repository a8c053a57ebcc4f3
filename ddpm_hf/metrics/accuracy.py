"""Whether the images of a class-conditional model show the class that they were to show."""

import torch
from torch import Tensor

from ddpm_hf.metrics.base import MeanOverImages


class ClassAccuracy(MeanOverImages):
    """Share of the images for which a classifier's highest score is that of the class that was asked for, ``accuracy``.

    Its network gives class scores ``(B, K)``. Real images are not needed.
    """

    @torch.no_grad()
    def update(self, images: Tensor, real: bool, labels: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            images: uint8 ``(B, C, H, W)``; or class scores ``(B, K)``, where the metric has no network.
            real: See `ImageMetric`.
            labels: int64 ``(B,)``, the classes that were asked for.

        Raises:
            ValueError: there are no labels, or not an integer for each image.
        """
        if labels is None:
            raise ValueError("the accuracy needs the class that each image was to show; give update its labels")
        if labels.shape != (len(images),) or labels.is_floating_point():
            raise ValueError(
                f"labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)} and must be an "
                f"integer for each of the {len(images)} images"
            )
        found = self._features(images).argmax(dim=1)
        (self.real_features if real else self.fake_features).append(found == labels.to(found.device))

    def parts(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """See `MeanOverImages`."""
        return {"accuracy": fake}
