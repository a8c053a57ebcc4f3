"""Pictures of how images come about: their way out of the noise, and the way from one to another."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ddpm_hf.files import written_whole
from ddpm_hf.images import PLAIN, Display, as_pictures, image_grid, scale_of, to_uint8
from ddpm_hf.randomness import generators_of
from ddpm_hf.sampling.denoising import DEFAULT, OnStep, SamplingOptions, denoise, image_shape, slerp
from ddpm_hf.sampling.samplers import check_start, sampler_of


def denoising_path(
    unet: Any,
    scheduler: Any,
    seeds: Sequence[int],
    options: SamplingOptions = DEFAULT,
    class_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every x_t of some images, and the x_0 that the network predicts from it.

    Args:
        unet: the network.
        scheduler: with its S timesteps set.
        seeds: seeds of the B images; an image does not depend on the other seeds.
        options: as in `denoise`.
        class_labels: int64 (B,).

    Returns:
        Two of uint8 (S + 1, B, C, H, W): the last of both is the finished image.

    Raises:
        ValueError: if the scheduler does not say what x_0 it predicts.

    Examples:
        >>> from ddpm_hf import DDPMCustomPipeline
        >>> pipe = DDPMCustomPipeline.from_pretrained("runs/digits")
        >>> pipe.scheduler.set_timesteps(10)
        >>> samples, predictions = denoising_path(pipe.unet, pipe.scheduler, seeds=[0, 1])
        >>> denoising_strip(samples, predictions).save("strip.png")
    """
    check_start(scheduler)
    generators = generators_of(seeds)
    noise = _noise(unet, generators)
    samples, predictions = [noise], []

    def remember(i: int, t: Tensor, x_s: Tensor, x_0: Tensor | None) -> None:
        if x_0 is None:
            raise ValueError(f"{type(scheduler).__name__} does not say what image it predicts; use ddim or ddpm.")
        samples.append(x_s)
        predictions.append(x_0)

    denoise(unet, scheduler, noise, options, generator=generators, class_labels=class_labels, on_step=remember)
    both = [torch.stack([to_uint8(x).cpu() for x in path]) for path in (samples, [*predictions, samples[-1]])]
    return both[0], both[1]


def denoising_strip(samples: Tensor, predictions: Tensor, columns: int = 11, display: Display = PLAIN) -> Image.Image:
    """Two rows for each image, x_t above the predicted x_0, at timesteps evenly chosen from first to last.

    Args:
        samples: uint8 (S + 1, B, C, H, W), from `denoising_path`.
        predictions: the same shape.
        columns: largest number of timesteps shown.
        display: which channels are shown.
    """
    times = torch.linspace(0, len(samples) - 1, min(columns, len(samples))).round().long()
    rows = torch.stack([samples[times], predictions[times]]).permute(2, 0, 1, 3, 4, 5)  # image, kind, time
    return image_grid(as_pictures(rows.flatten(0, 2), display), len(times), scale_of(samples))


def denoising_frames(samples: Tensor, predictions: Tensor, display: Display = PLAIN) -> list[Image.Image]:
    """A picture for each time: the images' x_t side by side above the x_0 predicted of them. Arguments as above."""
    return [
        image_grid(as_pictures(torch.cat([x_t, x_0]), display), len(x_t), scale_of(samples))
        for x_t, x_0 in zip(samples, predictions, strict=True)
    ]


def interpolation(
    unet: Any,
    scheduler: Any,
    seeds: Sequence[int],
    options: SamplingOptions = DEFAULT,
    class_labels: Tensor | None = None,
    columns: int = 11,
    display: Display = PLAIN,
) -> Image.Image:
    """From the image of each seed to that of the next, a row each (Song et al. 2021, figure 6).

    The noise goes along the great circle between the two seeds' (eq. 67), and a sampler without noise of its own takes
    it to images, so that neighbours look alike.

    Args:
        unet: the network.
        scheduler: a deterministic one, with its timesteps set.
        seeds: two or more.
        options: as in `denoise`.
        class_labels: int64, one for each seed; a row has that of its first.
        columns: images in a row, both ends included.
        display: which channels are shown.

    Raises:
        ValueError: as `walk`.
    """
    pairs = list(pairwise(seeds))
    labels = [None] * len(pairs) if class_labels is None else class_labels[:-1]
    rows = [
        to_uint8(walk(unet, scheduler, torch.linspace(0, 1, columns), pair, options, label))
        for pair, label in zip(pairs, labels, strict=True)
    ]
    return image_grid(as_pictures(torch.cat(rows), display), columns, scale_of(rows[0]))


def walk(
    unet: Any,
    scheduler: Any,
    shares: Tensor,
    seeds: tuple[int, int],
    options: SamplingOptions = DEFAULT,
    class_label: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The images on the way from one seed to another; see `interpolation`.

    Args:
        unet: the network.
        scheduler: a deterministic one, with its timesteps set.
        shares: (B,) of the way, each from 0 to 1.
        seeds: the first and the last.
        options: as in `denoise`.
        class_label: int64, of one class; None for a model without any.
        on_step: as in `denoise`.

    Returns:
        (B, C, H, W) of about [-1, 1].

    Raises:
        ValueError: the sampler adds noise on the way, so that neighbours would not look alike.
    """
    sampler = sampler_of(scheduler)
    if sampler is None or sampler.is_stochastic or options.eta:
        raise ValueError("show interpolation needs a sampler without noise of its own; give --scheduler ddim --eta 0")
    check_start(scheduler)
    start, end = _noise(unet, generators_of(seeds))
    noise = torch.stack([slerp(start, end, share) for share in shares])
    labels = None if class_label is None else class_label.expand(len(shares))
    return denoise(unet, scheduler, noise, options, class_labels=labels, on_step=on_step)


def save_gif(
    frames: Sequence[Image.Image], path: Path, milliseconds: int = 60, milliseconds_at_end: int = 2000
) -> None:
    """Write an endless animation, whole.

    Args:
        frames: images of one size.
        path: path of the GIF.
        milliseconds: time for which a frame is shown.
        milliseconds_at_end: time for which the last one is shown.
    """
    durations = [milliseconds] * (len(frames) - 1) + [milliseconds_at_end]
    options = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "optimize": False}
    with written_whole(path) as temporary:
        frames[0].save(temporary, format="GIF", **options)


def _noise(unet: Any, generators: list[torch.Generator]) -> Tensor:
    shape = (len(generators), *image_shape(unet))
    noise: Tensor = randn_tensor(shape, generator=generators, device=unet.device, dtype=unet.dtype)
    return noise
