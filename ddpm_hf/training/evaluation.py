"""Images of the network as it is, and how good they are: during training and at its end."""

import math
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor

from ddpm_hf.data.sources import ImageData, ImageSource
from ddpm_hf.images import Display, as_pictures, image_grid, scale_of
from ddpm_hf.metrics.evaluation import Evaluation, Results, Score
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.intake import Intake
from ddpm_hf.metrics.reference import FeatureExtraction
from ddpm_hf.metrics.results import SHOWN, nearest_picture, plain_table
from ddpm_hf.metrics.table import HELD_OUT, METRICS, SAMPLES, fewest_images
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.randomness import seed_from
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.settings import renamed
from ddpm_hf.training.held_out import held_out_images
from ddpm_hf.training.settings import Config


class SampleEvaluation:
    """Draws images from fixed seeds and, where the settings name a feature network, scores them.

    The features of the training images are computed here, once, or come from the file of an earlier run.

    Args:
        config: The run's settings.
        data: Its training images.
        sampler: A scheduler with its timesteps set.
        accelerator: Its processes share the work.
        show_progress: Tell how far the drawing and the features are.

    Raises:
        ValueError: the settings ask for scores that cannot be computed.
    """

    def __init__(
        self, config: Config, data: ImageSource, sampler: Any, accelerator: Accelerator, show_progress: bool
    ) -> None:
        self._settings = settings = config.evaluation
        self._sampler = sampler
        self._accelerator = accelerator
        self._show_progress = show_progress
        self._num_classes = data.num_classes if config.model["num_class_embeds"] is not None else None
        self.first_seed = first_image_seed(config)
        self._held_out: Tensor | None = None
        self._held_out_labels: Tensor | None = None
        self._data = data
        self._display = Display(data.format, _as_tuple(settings.shown_channels), settings.colour_map)
        with renamed({name: f"evaluation.{name}" for name in ("shown_channels", "colour_map")}):
            self._display.check(data.shape[0])
        if settings.extractor is None:
            return
        if not isinstance(data, ImageData):
            raise ValueError(f"evaluation.extractor scores against images all at hand (ImageData), not {data.name!r}")
        if settings.held_out_split is not None and config.data.name.endswith(".parquet"):
            raise ValueError(
                f"data.name {config.data.name} is one file, all of which is trained on, so it has no "
                f"evaluation.held_out_split {settings.held_out_split!r}; make that null"
            )
        metrics = self._metrics(config)
        fewest = fewest_images(metrics)
        if settings.num_images < fewest:
            raise ValueError(
                f"evaluation.num_images is {settings.num_images}, and evaluation.metrics {', '.join(metrics)} "
                f"need at least {fewest}"
            )
        extractor = load_extractor(settings.extractor, settings.extractor_weights, accelerator).to(accelerator.device)
        intake = Intake(data.format, _as_tuple(settings.extractor_channels))
        with renamed({"extractor_channels": "evaluation.extractor_channels"}):
            intake.check(extractor, data.shape[0])
        self._features = FeatureExtraction(
            extractor, accelerator, settings.batch_size, show_progress=show_progress, intake=intake
        )
        self._real = self._features.kept(data.images, data.fingerprint)
        self._scorer = Evaluation(metrics, extractor, self._real, notes=intake.notes(extractor, data.shape[0]))
        if settings.held_out_split is not None:
            held_out = held_out_images(config, data)
            if len(held_out) < settings.num_images:
                raise ValueError(
                    f"evaluation.num_images is {settings.num_images} and must be at most {len(held_out)}, the number "
                    f"of images of evaluation.held_out_split {settings.held_out_split!r}; lower it, or make that null"
                )
            self._held_out = self._features.kept(held_out.images, held_out.fingerprint)[: settings.num_images]
            self._held_out_labels = None if held_out.labels is None else held_out.labels[: settings.num_images]

    def _metrics(self, config: Config) -> list[str]:
        """The metrics of the settings, and the accuracy wherever it can be computed."""
        # The digits network knows the digits' classes, so it can say whether an image shows the class that it should.
        knows = self._num_classes is not None and config.data.name == config.evaluation.extractor == "digits"
        asked = [name for name in config.evaluation.metrics if METRICS[name].needs_labels]
        if asked and not knows:
            raise ValueError(
                f"evaluation.metrics holds {', '.join(asked)}, which is for a model with classes "
                "(model.num_class_embeds) of the embedded digits, with evaluation.extractor digits; take it out"
            )
        return [*config.evaluation.metrics, *(["accuracy"] if knows and not asked else [])]

    def draw(self, unet: UNet2DModel, num_images: int) -> Tensor:
        """Images 0 .. num_images-1 of the run, ``(N, C, H, W)`` in the data's format; of classes 0, 1, ... in turn."""
        settings = self._settings
        return sample_images(
            unet,
            self._sampler,
            range(self.first_seed, self.first_seed + num_images),
            SamplingOptions(
                settings.eta,
                settings.guidance_scale,
                batch_size=settings.batch_size,
                format=self._data.format,
                guidance_interval=settings.guidance_interval,
            ),
            class_labels=self._labels_of(num_images),
            accelerator=self._accelerator,
            show_progress=self._show_progress,
        )

    def _labels_of(self, num_images: int) -> Tensor | None:
        """The classes in turn; the network's own class for "no class" is not among them."""
        return None if self._num_classes is None else torch.arange(num_images) % self._num_classes

    def grid(self, images: Tensor) -> Image:
        """The first of ``images`` side by side, small ones enlarged."""
        shown = images[: self._settings.grid_images]
        columns = math.ceil(math.sqrt(len(shown)))
        if self._num_classes is not None and self._num_classes <= 16:
            columns = self._num_classes  # a column for each class
        return image_grid(as_pictures(shown, self._display), columns, scale=scale_of(images))

    def nearest(self, images: Tensor) -> Image | None:
        """A dozen of ``images``, each beside the training images nearest to it; None without a feature network.

        All processes must ask.
        """
        if self._settings.extractor is None or not isinstance(self._data, ImageData):
            return None
        shown = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:SHOWN]]
        return nearest_picture(shown, self._features.of(shown), self._data.images, self._real, self._display)

    def score(self, images: Tensor) -> Results:
        """The scores of ``images``, as `draw` gives them; none if the settings name no feature network."""
        if self._settings.extractor is None:
            return Results(num_images={SAMPLES: len(images)})
        features = self._features.of(images)
        sets = {SAMPLES: self._scorer.score(features, self._labels_of(len(images)))} | self._held_out_scores
        test = None if self._held_out is None else self._scorer.copying(features, self._held_out)
        return self._scorer.results(sets, dict.fromkeys(sets, len(images)), {SAMPLES: test} if test else None)

    @cached_property
    def _held_out_scores(self) -> dict[str, dict[str, Score]]:
        if self._held_out is None:
            return {}
        return {HELD_OUT: self._scorer.score(self._held_out, self._held_out_labels)}

    @property
    def provenance(self) -> dict[str, Any]:
        """Facts about the images that are not in the run's settings."""
        return {} if self._num_classes is None else {"class_labels": f"0-{self._num_classes - 1}"}

    def table(self, results: Results) -> str:
        """The scores for a person to read."""
        if not results.sets:
            return "No scores: evaluation.extractor is null."
        beside = "" if self._held_out is None else ", and as many real images held out from training,"
        return (
            f"{plain_table(results)}\n({results.num_images[SAMPLES]} samples{beside} against the "
            f"{results.reference_images} training images, in the features of {results.extractor})"
            + "".join(f"\n{test}" for test in results.copying.values())
        )


def _as_tuple(channels: list[int] | None) -> tuple[int, ...] | None:
    return None if channels is None else tuple(channels)


def first_image_seed(config: Config) -> int:
    """The seed of image 0: runs of different seeds share no image, and torch takes the seed of the last one too."""
    images = max(config.evaluation.num_images, config.evaluation.grid_images)
    first, end = config.seed * config.evaluation.num_images, 2**63 - images
    return first if first <= end else seed_from("images", config.seed) % end
