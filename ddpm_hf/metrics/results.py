"""What a person is shown of an evaluation: tables of scores, and samples beside the real images nearest to them."""

import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_hf.images import image_grid
from ddpm_hf.metrics.evaluation import Results
from ddpm_hf.metrics.neighbours import nearest

SHOWN = 12
NEIGHBOURS = 7


def markdown_table(results: Results) -> str:
    """A row for each set of images, a column for each score; for a README."""
    columns = ["samples", "images", *results.names]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, found in results.sets.items():
        scores = (str(found[column]) if column in found else "-" for column in results.names)
        lines.append(f"| {name} | {results.num_images[name]} | {' | '.join(scores)} |")
    notes = [f"\nNote: {note}." for note in results.notes]
    return "\n".join([*lines, *notes]) + "\n"


def plain_table(results: Results) -> str:
    """A row for each score, a column for each set of images and for the ratio; for a terminal."""
    scores = results.scores
    columns = list(dict.fromkeys(column for entry in scores.values() for column in entry))
    lines = ["".join([f"{'':<12}", *(f"{column.replace('_', ' '):>12}" for column in columns)])]
    for name, entry in scores.items():
        cells = (f"{entry[column]:>12.4f}" if column in entry else f"{'-':>12}" for column in columns)
        lines.append("".join([f"{name:<12}", *cells]))
    return "\n".join([*lines, *(f"Note: {note}." for note in results.notes)])


def nearest_picture(fake: Tensor, fake_features: Tensor, real: Tensor, real_features: Tensor) -> Image:
    """Some samples, a row each: the sample on the left, then its nearest real images, nearest first.

    A sample that is the same as its nearest neighbour has been memorised. Which samples are shown is left to
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
