"""What ddpm-hf-sample draws with --show: pictures of the first seeds, in place of single images."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ddpm_hf.images import PLAIN, Display, as_pictures, image_grid, save_png, scale_of
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.sampling.pictures import (
    denoising_frames,
    denoising_path,
    denoising_strip,
    interpolation,
    save_gif,
)


def show(
    kind: str,
    unet: Any,
    scheduler: Any,
    seeds: range,
    labels: Tensor | None,
    options: SamplingOptions,
    display: Display = PLAIN,
) -> dict[str, list[Image.Image]]:
    """Draw the pictures: the name of each file, and its frames.

    Args:
        kind: one of `sample.PICTURES`.
        unet: the network.
        scheduler: with its timesteps set.
        seeds: one for each image.
        labels: int64, one for each image, or None.
        options: as in `denoise`.
        display: which channels are shown.

    Raises:
        ValueError: if the scheduler cannot draw such a picture.
    """
    labels = None if labels is None else labels.to(unet.device)
    if kind == "grid":
        images = sample_images(unet, scheduler, seeds, options, class_labels=labels)
        return {"grid.png": [image_grid(as_pictures(images, display), scale=scale_of(images))]}
    if kind == "interpolation":
        return {"interpolation.png": [interpolation(unet, scheduler, seeds, options, labels, display=display)]}
    path = denoising_path(unet, scheduler, seeds, options, labels)
    strip, frames = denoising_strip(*path, display=display), denoising_frames(*path, display)
    return {"denoising.png": [strip], "denoising.gif": frames}


def save(pictures: dict[str, list[Image.Image]], folder: Path) -> str:
    """Write what `show` has drawn, and say what it is."""
    for name, frames in pictures.items():
        if name.endswith(".gif"):
            save_gif(frames, folder / name)
        else:
            save_png(frames[0], folder / name)
    return ", ".join(pictures)
