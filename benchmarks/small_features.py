"""Trains a feature network for labelled images of 16x16, as none is published for images this small."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_hf.data.sources import ImageData
from ddpm_hf.images import from_uint8

EPOCHS = 4
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


class SmallFeatures(nn.Module):
    """uint8 (N, C, 16, 16) to 64 features, from which one linear layer tells the ten classes."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels in [(in_channels, 32), (32, 64), (64, 64)]:
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 2 * 2, 64), nn.ReLU())
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(from_uint8(images))
        return features


def trained_features(data: ImageData, path: Path) -> Path:
    """Train on these images, and leave the TorchScript file that `load_extractor` takes."""
    assert data.labels is not None
    torch.manual_seed(0)
    network = SmallFeatures(data.shape[0])
    steps = EPOCHS * (len(data) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(data))[: steps // EPOCHS * BATCH_SIZE], BATCH_SIZE):
            logits = network.classes(F.dropout(network(data.images[batch]), 0.2))
            optimizer.zero_grad()
            loss = F.cross_entropy(logits, data.labels[batch], label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    traced: Any = torch.jit.trace(network.eval(), data.images[:2])  # type: ignore[no-untyped-call]
    traced.save(str(path))
    return path
