"""CIFAR-10 without the library that usually reads it, and a small classifier in whose features images are scored."""

import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.gpu.device import autocast
from ddpm_hf.data.sources import ImageData

FEATURES = 128
BATCH_SIZE = 256


def load(folder: Path | None, split: str, side: int, most: int) -> ImageData:
    """A split of the Hub's parquet files, somewhere under the folder; without one, random images of that side."""
    if folder is None:
        images = torch.randint(
            256, (most, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        return ImageData("random", images, torch.arange(len(images)) % 10)
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no {split}-*.parquet")
    tables = [pyarrow.parquet.read_table(file) for file in files]
    rows = [row for table in tables for row in table.column("img").to_pylist()]
    rows = rows[:most]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows])
    labels = torch.tensor([label for table in tables for label in table.column("label").to_pylist()])
    return ImageData("CIFAR-10", torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels[:most])


class Classifier(nn.Module):
    """Images in [-1, 1], (N, 3, H, W), to `FEATURES` numbers, from which one linear layer tells the ten classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([3, 64, 128, 256, FEATURES]):
            for channels in (before, after):
                layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classes = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        features: Tensor = self.layers(images)
        return features

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """float32 (N, `FEATURES`) of uint8 images, wherever they lie, a part at a time."""
        device = self.classes.weight.device
        return torch.cat(
            [self.eval()(part.to(device).float() / 127.5 - 1).float() for part in torch.split(images, 1000)]
        )

    def accuracy(self, data: ImageData) -> float:
        """The share of images whose class it tells."""
        assert data.labels is not None
        with torch.no_grad():
            said = self.classes(self.features(data.images)).argmax(dim=1)
        return float((said.cpu() == data.labels).double().mean())


def trained_classifier(data: ImageData, device: torch.device, epochs: int) -> Classifier:
    """On images that are mirrored and moved at random, the same at every run."""
    assert data.labels is not None
    torch.manual_seed(0)
    network = Classifier().to(device)
    images, labels = data.images.to(device), data.labels.to(device)
    steps = epochs * (len(data) // BATCH_SIZE)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.2)
    for _ in range(epochs):
        order = torch.randperm(len(data), device=device)[: steps // epochs * BATCH_SIZE]
        for picked in torch.split(order, BATCH_SIZE):
            batch = F.pad(images[picked].float() / 127.5 - 1, (4, 4, 4, 4))
            top, left = torch.randint(9, (2,)).tolist()
            batch = batch[:, :, top : top + images.shape[2], left : left + images.shape[3]]
            is_mirrored = torch.rand(len(picked), 1, 1, 1, device=device) < 0.5
            with autocast("bf16", device):
                logits = network.classes(network(torch.where(is_mirrored, batch.flip(-1), batch)))
            optimizer.zero_grad()
            loss = F.cross_entropy(logits.float(), labels[picked], label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)
