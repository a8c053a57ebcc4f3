"""What a person is shown of an evaluation: a table of scores, and samples beside the real images nearest to them."""

from collections.abc import Mapping

import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_hf.images import image_grid
from ddpm_hf.metrics.neighbours import nearest
from ddpm_hf.metrics.scores import Score

SHOWN = 12
NEIGHBOURS = 7


def markdown_table(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """A row for each set of images, a column for each score; for a README."""
    columns = list(next(iter(scores.values())))
    lines = [f"| samples | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 1)}"]
    lines += [f"| {name} | {' | '.join(str(found[column]) for column in columns)} |" for name, found in scores.items()]
    return "\n".join(lines) + "\n"


def nearest_picture(fake: Tensor, fake_features: Tensor, real: Tensor, real_features: Tensor) -> Image:
    """Some samples, a row each: the sample on the left, then its nearest real images, nearest first.

    A sample that is the same as its nearest neighbour has been learnt by heart. Which samples are shown is left to
    chance, from a fixed seed.

    Args:
        fake: Images uint8 ``(N, C, H, W)``.
        fake_features: ``(N, D)``.
        real: Images uint8 ``(M, C, H, W)``.
        real_features: ``(M, D)``.
    """
    picked = torch.randperm(len(fake), generator=torch.Generator().manual_seed(0))[:SHOWN]
    found = nearest(fake_features[picked], real_features, min(NEIGHBOURS, len(real)))
    gap = torch.full_like(fake[:1], 255)
    rows = [torch.cat([fake[i : i + 1], gap, real[row]]) for i, row in zip(picked.tolist(), found, strict=True)]
    return image_grid(torch.cat(rows), columns=len(rows[0]), scale=max(1, 32 // fake.shape[-1]))
