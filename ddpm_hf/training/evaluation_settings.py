"""The settings of the images that a training run draws and scores, as a dataclass."""

from dataclasses import dataclass, field
from pathlib import Path

from ddpm_hf.metrics.table import (
    IN_TRAINING,
    ScoreName,
    TrainingMetric,
    check_weights_of,
    metrics_in_help,
    scores_of,
)
from ddpm_hf.sampling.request import MOST_IMAGES, check_interval
from ddpm_hf.sampling.samplers import SamplerName, TimestepSpacing, check_sampler
from ddpm_hf.settings import ColourMap, check, named, renamed


@metrics_in_help(IN_TRAINING)
@dataclass(frozen=True)
class EvaluationConfig:
    """The images drawn at the end with the averaged weights, and how they are scored.

    Args:
        metrics: Metrics that compare the images with all the training images: {metrics}.
        extractor: Feature network of the metrics: digits (for the embedded digits), inception, dinov2, vgg16, pixels
            (no network: the values themselves, of any channels and type), a TorchScript file, or the folder or Hub id
            of a vision transformer. null: no scores.
        extractor_weights: File of the feature network's weights, in place of the default one.
        extractor_channels: Channels that the feature network sees, from 0 and in this order, such as [3,2,1]; null
            shows it all of them.
        held_out_split: Split that is not trained on. As many of its images as are drawn are scored too, as an estimate
            of a perfect model's scores. null: no such scores.
        loss_every: Steps between two looks at the loss on as many images of held_out_split, always with the same noise;
            samples/loss.png shows it beside the training loss. Where it rises while that falls, the model learns its
            images by heart. null: none.
        num_images: Images to draw.
        sampler: The sampler that draws them, as in ddpm-hf-sample.
        num_inference_steps: Steps of the sampler.
        timestep_spacing: How the sampler's timesteps are spread over the training timesteps; the saved scheduler
            spreads them so too. null: as diffusion.timestep_spacing.
        eta: Noise of the samplers ddim and adams: 0 is DDIM, 1 is DDPM on the same steps.
        guidance_scale: Scale of classifier-free guidance, for models trained with label_dropout; 1 is no guidance.
        guidance_interval: Noise levels between which there is guidance, as in ddpm-hf-sample. null: all.
        batch_size: Images drawn at a time, per process.
        grid_images: Number of images in a grid of samples.
        shown_channels: Channels that pictures show, from 0: one as grey, two as magenta and green, three as red, green
            and blue. null: all of up to three, else the first three.
        colour_map: Colours in which pictures show a single channel; null is grey.
        every: Steps between two rounds of drawing and scoring during training; the weights with the best score are kept
            in best/, and samples/fid.png (named after the score) shows all rounds. null: scores at the end only.
        best_by: Score by which the best weights are chosen; one of those that evaluation.metrics give.
    """

    metrics: list[TrainingMetric] = field(default_factory=lambda: ["fid", "precision_recall"])
    extractor: str | None = None
    extractor_weights: Path | None = None
    extractor_channels: list[int] | None = None
    held_out_split: str | None = None
    loss_every: int | None = None
    num_images: int = 500
    sampler: SamplerName = "ddim"
    num_inference_steps: int = 50
    timestep_spacing: TimestepSpacing | None = None
    eta: float = 0.0
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    batch_size: int = 128
    grid_images: int = 64
    shown_channels: list[int] | None = None
    colour_map: ColourMap | None = None
    every: int | None = None
    best_by: ScoreName = "fid"

    def __post_init__(self) -> None:
        for name in ("num_images", "num_inference_steps", "batch_size", "grid_images"):
            value = getattr(self, name)
            check(1 <= value <= MOST_IMAGES, f"evaluation.{name}", value, f"at least 1, and at most {MOST_IMAGES:,}")
        for name in ("every", "loss_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"evaluation.{name}", value, "at least 1, or null")
        expected = "null, or evaluation.held_out_split must be given"
        has_images = self.loss_every is None or self.held_out_split is not None
        check(has_images, "evaluation.loss_every", self.loss_every, expected)
        check(len(self.metrics) > 0, "evaluation.metrics", self.metrics, "at least one; extractor null scores nothing")
        if self.every is not None:
            expected = "null, or evaluation.extractor must be given"
            check(self.extractor is not None, "evaluation.every", self.every, expected)
            names = scores_of(self.metrics)
            expected = f"a score of evaluation.metrics ({', '.join(names)}) where evaluation.every is set"
            check(self.best_by in names, "evaluation.best_by", self.best_by, expected)
        check(0 <= self.eta <= 1, "evaluation.eta", self.eta, "from 0 to 1")
        scale = self.guidance_scale
        check(0 <= scale <= 1000, "evaluation.guidance_scale", scale, "a number from 0 to 1000")
        check_interval(self.guidance_interval, scale, "evaluation.")
        check_weights_of(self.extractor, self.extractor_weights, "evaluation.")
        settings = ("timestep_spacing", "eta", "num_inference_steps")
        with named("evaluation.sampler: "), renamed({name: f"evaluation.{name}" for name in settings}):
            check_sampler(self.sampler, self.timestep_spacing, self.eta, self.num_inference_steps)
