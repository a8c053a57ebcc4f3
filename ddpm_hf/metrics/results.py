"""What a person is shown of an evaluation: tables of scores, and samples beside the real images nearest to them."""

import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_hf.images import PLAIN, Display, as_pictures, image_grid, scale_of
from ddpm_hf.metrics.evaluation import Results
from ddpm_hf.metrics.neighbours import distances, nearest

SHOWN = 12
NEIGHBOURS = 7


def markdown_table(results: Results) -> str:
    """A row for each set of images and each ratio, a column for each score; sentences below. For a README."""
    columns = ["samples", "images", *results.names]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, found in results.sets.items():
        scores = (str(found[column]) if column in found else "-" for column in results.names)
        lines.append(f"| {name} | {results.num_images[name]} | {' | '.join(scores)} |")
    for name, ratios in results.ratios.items():
        values = (f"{ratios[column]:.3g}" if column in ratios else "-" for column in results.names)
        lines.append(f"| {name} | | {' | '.join(values)} |")
    tests = [f"\n{name}: {test}." for name, test in results.copying.items()]
    notes = [f"\nNote: {note}." for note in results.notes]
    return "\n".join([*lines, *tests, *notes]) + "\n"


def plain_table(results: Results) -> str:
    """A row for each score, a column for each set of images and for the ratio; for a terminal."""
    scores = results.scores
    columns = list(dict.fromkeys(column for entry in scores.values() for column in entry))
    lines = ["".join([f"{'':<12}", *(f"{column.replace('_', ' '):>12}" for column in columns)])]
    for name, entry in scores.items():
        cells = (f"{entry[column]:>12.4f}" if column in entry else f"{'-':>12}" for column in columns)
        lines.append("".join([f"{name:<12}", *cells]))
    return "\n".join([*lines, *(f"Note: {note}." for note in results.notes)])


def nearest_picture(
    fake: Tensor, fake_features: Tensor, real: Tensor, real_features: Tensor, display: Display = PLAIN
) -> Image:
    """Some samples, a row each: the sample on the left, then its nearest real images, nearest first, with distances.

    A sample that is the same as its nearest neighbour has been memorised. Which samples are shown is left to
    chance, from a fixed seed.

    Args:
        fake: Images ``(N, C, H, W)`` of the type of the display's format.
        fake_features: ``(N, D)``.
        real: Images ``(M, C, H, W)``, as these.
        real_features: ``(M, D)``, in which distances are measured.
        display: Which channels are shown, and how.
    """
    picked = torch.randperm(len(fake), generator=torch.Generator().manual_seed(0))[:SHOWN]
    found = nearest(fake_features[picked], real_features, min(NEIGHBOURS, len(real)))
    shown = as_pictures(fake[picked], display)
    gap, captions, rows = torch.full_like(shown[:1], 255), list[str](), list[Tensor]()
    for sample, features, row in zip(shown, fake_features[picked], found, strict=True):
        rows.append(torch.cat([sample[None], gap, as_pictures(real[row], display)]))
        captions += ["", "", *(f"{distance:.3g}" for distance in distances(features, real_features[row]).tolist())]
    return image_grid(torch.cat(rows), len(rows[0]), scale_of(fake), captions)
