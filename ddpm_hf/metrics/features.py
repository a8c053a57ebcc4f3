"""The features in which the embedded digits are scored."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from torch import Tensor, nn

from ddpm_hf.images import from_uint8

WEIGHTS = Path(__file__).parent.parent / "assets" / "digits_features.safetensors"


class DigitsFeatures(nn.Module):
    """A small classifier of 8x8 digits; its last hidden layer, 64 numbers, is the feature of an image.

    Trained by ``ddpm_hf.assets.train_digits_features`` on the training part of the embedded digits. It has the
    interface that torchmetrics asks of a ``feature`` network: uint8 images in, ``num_features`` numbers an image out.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=3, padding=1, stride=2)
        self.hidden = nn.Linear(64 * 2 * 2, self.num_features)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(self.num_features, 10)

    @classmethod
    def load(cls) -> "DigitsFeatures":
        """The trained network, frozen and in evaluation mode."""
        network = cls()
        load_model(network, WEIGHTS)
        return network.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 (N, 64), of images, uint8 (N, 1, 8, 8).

        Raises:
            ValueError: for images of another type or shape.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"the digits network was given {images.dtype} images of shape {tuple(images.shape)} and takes uint8 "
                "(N, 1, 8, 8); for other images use another feature network."
            )
        return self.features(from_uint8(images))

    def features(self, images: Tensor) -> Tensor:
        """Features, (N, 64), of images in [-1, 1], float (N, 1, 8, 8)."""
        hidden = F.silu(self.conv1(images))
        hidden = F.silu(self.conv2(hidden))
        hidden = F.silu(self.conv3(hidden))
        return F.silu(self.hidden(hidden.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """Scores of the ten classes, (N, 10), of features (N, 64)."""
        logits: Tensor = self.classifier(self.dropout(features))
        return logits
