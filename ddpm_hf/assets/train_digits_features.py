"""Trains the network that scores digits: ``python -m ddpm_hf.assets.train_digits_features`` (about 20 seconds).

It sees the training part of the embedded digits only. Moved, turned and stretched images, dropout and label smoothing
keep it from learning the training images by heart: such features would set them apart from held-out and from generated
images alike.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.images import from_uint8
from ddpm_hf.metrics.features import WEIGHTS, DigitsFeatures

EPOCHS = 60
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1
MAX_SHIFT = 1.0  # pixels
MAX_ANGLE = 0.25  # radians
MAX_STRETCH = 0.15


def train(seed: int = 0) -> DigitsFeatures:
    """The trained network in evaluation mode. On one thread, the same machine and torch give the same bits."""
    data = load_cached_images(DataConfig())
    assert data.labels is not None
    images, labels = from_uint8(data.images), data.labels
    torch.manual_seed(seed)
    network = DigitsFeatures()
    batches = len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(images))[: batches * BATCH_SIZE], BATCH_SIZE):
            logits = network.logits(network.features(random_affine(images[batch])))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False).eval()


def random_affine(images: Tensor) -> Tensor:
    """Images (N, 1, 8, 8) in [-1, 1], each moved, turned and stretched at random; their borders go on outside."""

    def uniform(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(len(images), *shape) - 1) * limit

    angle, stretch = uniform(MAX_ANGLE), 1 + uniform(MAX_STRETCH)
    # The grid runs from -1 to 1 over the image: a pixel is 2 / width.
    shift = uniform(MAX_SHIFT * 2 / images.shape[-1], 2)
    cos, sin = stretch * angle.cos(), stretch * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0]], dim=1), torch.stack([sin, cos, shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def accuracy(network: DigitsFeatures, split: str) -> float:
    """Share of a split's digits that the network names rightly."""
    data = load_cached_images(DataConfig(split=split))
    assert data.labels is not None
    return (network.logits(network(data.images)).argmax(dim=1) == data.labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the network whose features score the embedded digits.")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the safetensors file to write")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the file that is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = train()
    for split in ("train", "test"):
        print(f"accuracy on the {split} digits: {accuracy(network, split):.4f}")
    weights = network.state_dict()
    if not arguments.check:
        save_file(weights, arguments.output)
        print(f"saved to {arguments.output}")
        return
    saved = load_file(arguments.output)
    different = [name for name in weights if not torch.equal(weights[name], saved[name])]
    if different:
        raise SystemExit(
            f"{', '.join(different)} differ from {arguments.output}; the same bits are only to be expected from the "
            "same torch version on the same kind of processor."
        )
    print(f"the same bits as {arguments.output}")


if __name__ == "__main__":
    main()
