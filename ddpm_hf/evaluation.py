"""Images of the network as it is, and how good they are: during training and at its end."""

import math
from dataclasses import replace

import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor

from ddpm_hf.config import Config
from ddpm_hf.data import ImageData, ImageSource, load_cached_images
from ddpm_hf.images import image_grid
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, precision_recall
from ddpm_hf.sampling import sample_images
from ddpm_hf.schedulers import DDIMScheduler
from ddpm_hf.unet import UNet2DModel

Scores = dict[str, dict[str, float]]
"""Metric -> "samples", "held_out" (real images not trained on: what a perfect model would get) and "ratio"."""


class Evaluation:
    """Draws images from fixed seeds and, where the training images are the digits, scores them.

    Args:
        config: The run's settings.
        data: Its training images.
        sampler: With its grid of timesteps.
        accelerator: Its processes share the work.
        show_progress: A bar while images are drawn.

    Raises:
        ValueError: the settings ask for scores that cannot be had.
    """

    def __init__(
        self, config: Config, data: ImageSource, sampler: DDIMScheduler, accelerator: Accelerator, show_progress: bool
    ) -> None:
        self._settings = config.evaluation
        self._sampler = sampler
        self._accelerator = accelerator
        self._show_progress = show_progress
        self._num_classes = data.num_classes if config.model["num_class_embeds"] is not None else None
        self.first_seed = config.seed * config.evaluation.num_images  # so runs of different seeds share no image
        self._real: tuple[ImageData, ImageData] | None = None
        is_digits = (config.data.name, config.data.split, data.shape) == ("digits", "train", (1, 8, 8))
        if is_digits and isinstance(data, ImageData):
            held_out = load_cached_images(replace(config.data, split=f"test[:{self._settings.num_images}]"))
            if not 4 <= self._settings.num_images <= len(held_out):
                raise ValueError(
                    f"evaluation.num_images is {self._settings.num_images} and must be from 4, for precision and "
                    f"recall, to {len(held_out)}, the number of digits held out"
                )
            self._real = data, held_out
        elif self._settings.every is not None:
            raise ValueError(
                f"evaluation.every is {self._settings.every}, but only the digits' train split has scores; make it null"
            )

    def draw(self, unet: UNet2DModel, num_images: int) -> Tensor:
        """Images 0 .. num_images-1 of the run, uint8 ``(N, C, H, W)``; of classes 0, 1, 2, ... in turn."""
        return sample_images(
            unet,
            self._sampler,
            num_images,
            seed=self.first_seed,
            batch_size=self._settings.batch_size,
            class_labels=None if self._num_classes is None else torch.arange(num_images) % self._num_classes,
            accelerator=self._accelerator,
            show_progress=self._show_progress,
            eta=self._settings.eta,
        )

    def grid(self, images: Tensor) -> Image:
        """The first of ``images`` side by side, small ones enlarged."""
        shown = images[: self._settings.grid_images]
        columns = math.ceil(math.sqrt(len(shown)))
        if self._num_classes is not None and self._num_classes <= 16:
            columns = self._num_classes  # a column for each class
        return image_grid(shown, columns, scale=max(1, 32 // images.shape[-1]))

    def score(self, images: Tensor) -> Scores:
        """FID, precision and recall of ``images`` and of the held-out ones, both against the training images.

        Returns:
            Nothing where there are no held-out images.
        """
        if self._real is None:
            return {}
        network = DigitsFeatures.load()
        train, real, fake = (network(part) for part in (self._real[0].images, self._real[1].images, images))
        scores = {"fid": {"samples": frechet_distance(fake, train), "held_out": frechet_distance(real, train)}}
        for name, of_samples, of_held_out in zip(
            ("precision", "recall"), precision_recall(train, fake), precision_recall(train, real), strict=True
        ):
            scores[name] = {"samples": of_samples, "held_out": of_held_out}
        for entry in scores.values():
            entry["ratio"] = entry["samples"] / entry["held_out"]
        return scores

    def table(self, scores: Scores) -> str:
        """The scores for a person to read."""
        if self._real is None:
            return "No scores: only the digits' train split has them."
        lines = [f"{'':<12}{'samples':>12}{'held out':>12}{'ratio':>8}"]
        for name, entry in scores.items():
            lines.append(f"{name:<12}{entry['samples']:>12.4f}{entry['held_out']:>12.4f}{entry['ratio']:>8.2f}")
        lines.append(
            f"({self._settings.num_images} samples, and as many real images held out from training, against the "
            f"{len(self._real[0])} training images, in the features of the embedded digits network)"
        )
        return "\n".join(lines)
