"""From images to scores: FID, KID, Inception score, precision and recall, density and coverage; and a model's bits/dim.

    ddpm-hf-evaluate --samples samples --reference uoft-cs/cifar10 --output scores
    ddpm-hf-evaluate --samples samples --reference digits --extractor digits --held_out_split test --output scores
    ddpm-hf-evaluate --compare samples-50 samples-100 --reference digits --extractor digits --output scores
    ddpm-hf-evaluate --model runs/digits --metrics bits_per_dim --reference digits --reference_split test --output bits

``accelerate launch --multi_gpu -m ddpm_hf.cli.evaluate`` runs it on several processes.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings
from ddpm_hf.data.settings import Alpha, DataConfig
from ddpm_hf.metrics.table import (
    HELD_OUT,
    IN_COMMAND,
    METRICS,
    OF_FILES,
    RATIO,
    CommandMetric,
    check_weights_of,
    comparing,
    fewest_images,
    metrics_in_help,
)
from ddpm_hf.settings import ColourMap


@metrics_in_help(IN_COMMAND)
@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of ddpm-hf-evaluate.

    Args:
        reference: The real images: digits, a data set's Hub id, folder or parquet file; or an .npz of their mean and
            covariance, as this command, pytorch-fid, ADM and EDM write them.
        output: Folder for metrics.json, manifest.json, table.md and nearest.png.
        samples: The generated images: a folder of PNG or JPEG files, an .npz of ADM's layout, parquet, or a data set's
            Hub id.
        compare: Several sets of generated images, in place of --samples, to be compared in one table.
        metrics: Metrics to compute: {metrics}. bits_per_dim cannot be combined with others and needs --model.
        held_out_split: Split of the reference data set, or of held_out, that was not trained on. As many of its images
            as there are samples are scored too, as an estimate of a perfect model's scores; and a test tells whether
            the samples are copies of the reference, which must then be the training images. Adds authenticity.
        held_out: Such images in a data set of their own, as for reference; their split is held_out_split, or train.
        per_class: Also compare the samples of each class with the reference images of that class, and give the mean
            over classes. The class of a sample is its folder, the column label of parquet, arr_1 or labels of an .npz,
            or what ddpm-hf-sample has noted.
        model: The folder or Hub id of the pipeline whose bits_per_dim is computed.
        likelihood: How bits_per_dim is computed: bound (every term of the variational bound), estimate (an unbiased
            estimate of it from a few terms), or ode (the likelihood of the probability-flow ODE).
        ode_rtol: Relative tolerance of each step of --likelihood ode.
        ode_atol: Absolute tolerance of each step of --likelihood ode.
        ode_steps: Number of steps of --likelihood ode on a fixed grid, in place of tolerances: quicker, but with an
            error that is not known.
        extractor: Feature network of the metrics: inception, dinov2, vgg16, digits, pixels (no network: the values
            themselves, of any channels and type), a TorchScript file from uint8 images to features, or the folder or
            Hub id of a vision transformer.
        extractor_weights: File of the feature network's weights, in place of the default one.
        extractor_channels: Channels that the feature network sees, from 0 and in this order, such as [3,2,1]; null
            shows it all of them.
        num_images: Number of samples to score, from the first one; null scores all.
        reference_config: Configuration of the reference data set, if it has several.
        reference_split: Split of the reference data set, such as train[:10000].
        reference_revision: Branch, tag or commit of a reference data set on the Hub.
        reference_image_column: Column of images; null chooses the only column of that type.
        reference_label_column: Column of class labels, integers or text, for --per_class and bits_per_dim; null chooses
            the only one of the type ClassLabel, if there is one.
        reference_layout: Axes of one image in arrays of numbers: HW, HWC or CHW; null goes by their sizes.
        reference_channels: Number of channels of the reference images, as data.channels in training; null keeps that of
            the first image.
        reference_alpha: What becomes of transparency: composite lays images on the background, channel keeps opacity as
            the last channel, drop forgets it and shows the colours below.
        reference_background: Name or #rrggbb of the colour that images with transparency are laid on.
        reference_dtype: uint8 rounds images of 16 bits to 8, uint16 takes those of 8 for 16; null keeps the type of the
            first image.
        reference_value_range: Values that the model saw as -1 and 1: two numbers; or percentile, for the 0.1 and 99.9 %
            of the reference's values in each channel. null: what the samples' manifest.json says, or all values of
            whole numbers.
        reference_center_crop: First cut a part out of the middle: an integer is the side of a square in pixels, true
            takes the largest part of the wanted shape, false none, and null takes true where there is a resolution.
        reference_resolution: Then resize reference images to a square of this side, or to [height, width]; null keeps
            their size.
        reference_resize_filter: Filter for resizing; all of them antialias.
        reference_random_crop: The data.random_crop of the training: samples are compared with the middle of each
            reference image, of that size.
        shown_channels: Channels that nearest.png shows, from 0: one as grey, two as magenta and green, three as red,
            green and blue. null: all of up to three, else the first three.
        colour_map: Colours in which nearest.png shows a single channel; null is grey.
        bootstrap: Number of bootstrap sets, from which the standard error of each score is computed; 0: no errors.
        batch_size: Images whose features are computed at once by each process.
        save_statistics: Write the reference's mean and covariance to this .npz file, in pytorch-fid's layout.
        cache_dir: Folder where features are kept between calls; null for the Hugging Face cache.
        threads: CPU threads of each process; null divides the usable cores among the processes of this machine.
        quiet: Do not tell how far it is: no bar in a terminal, and no lines where there is none.
    """

    reference: str
    output: Path
    samples: str | None = None
    compare: list[str] = field(default_factory=list)
    metrics: list[CommandMetric] = field(default_factory=lambda: ["fid", "precision_recall"])
    held_out_split: str | None = None
    held_out: str | None = None
    per_class: bool = False
    model: str | None = None
    likelihood: Literal["bound", "estimate", "ode"] = "bound"
    ode_rtol: float = 1e-5
    ode_atol: float = 1e-5
    ode_steps: int | None = None
    extractor: str = "inception"
    extractor_weights: Path | None = None
    extractor_channels: list[int] | None = None
    num_images: int | None = None
    reference_config: str | None = None
    reference_split: str = "train"
    reference_revision: str | None = None
    reference_image_column: str | None = None
    reference_label_column: str | None = None
    reference_layout: Literal["HW", "HWC", "CHW"] | None = None
    reference_channels: int | None = None
    reference_alpha: Alpha = "composite"
    reference_background: str = "white"
    reference_dtype: Literal["uint8", "uint16"] | None = None
    reference_value_range: Literal["percentile"] | tuple[float, float] | None = None
    reference_center_crop: bool | int | None = None
    reference_resolution: int | tuple[int, int] | None = None
    reference_resize_filter: Literal["lanczos", "bicubic", "bilinear", "box", "hamming"] = "lanczos"
    reference_random_crop: int | tuple[int, int] | None = None
    shown_channels: list[int] | None = None
    colour_map: ColourMap | None = None
    bootstrap: int = 20
    batch_size: int = 64
    save_statistics: Path | None = None
    cache_dir: Path | None = None
    threads: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.is_of_a_model != (self.model is not None) or (self.is_of_a_model and len(self.metrics) > 1):
            raise ValueError(
                "bits_per_dim scores a --model and the other metrics score samples; "
                "give either --model with --metrics bits_per_dim alone, or samples with other metrics"
            )
        if not self.is_of_a_model and (self.samples is None) == (not self.compare):
            raise ValueError("give the images either by --samples ONE or by --compare SEVERAL")
        if self.is_of_a_model and self.has_held_out:
            raise ValueError(
                "held_out and held_out_split are for samples, and bits_per_dim scores a --model; give the images that "
                "it was not trained on by --reference and --reference_split"
            )
        self._check_ode()
        self._check_classes()
        if taken := {HELD_OUT, RATIO}.intersection(self.sets):
            raise ValueError(f"{taken.pop()} is a name in the results and cannot be that of samples; give ./ before it")
        if not self.metrics:
            raise ValueError(f"metrics is empty; give some of {', '.join(OF_FILES)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads} and must be at least 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size} and must be at least 1")
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise ValueError(f"bootstrap is {self.bootstrap} and must be 0 or at least 2")
        check_weights_of(self.extractor, self.extractor_weights)
        fewest = fewest_images(self.scored)
        if self.num_images is not None and self.num_images < fewest:
            raise ValueError(f"num_images is {self.num_images}, and the metrics need at least {fewest}")
        if self.save_statistics is not None and self.save_statistics.suffix != ".npz":
            raise ValueError(f"save_statistics is {self.save_statistics} and must end with .npz")

    def _check_ode(self) -> None:
        for name in ("ode_rtol", "ode_atol", "ode_steps"):
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and not (self.is_of_a_model and self.likelihood == "ode"):
                raise ValueError(f"{name} is {value} and is for --metrics bits_per_dim --likelihood ode; leave it out")
        for name in ("ode_rtol", "ode_atol"):
            if not 1e-10 <= getattr(self, name) <= 0.1:  # which nan is not either
                raise ValueError(f"{name} is {getattr(self, name)} and must be from 1e-10 to 0.1; 1e-5 is usual")
        if self.ode_steps is not None and self.ode_steps < 1:
            raise ValueError(f"ode_steps is {self.ode_steps} and must be at least 1")

    def _check_classes(self) -> None:
        if self.per_class and not comparing(self.metrics):
            raise ValueError(
                "per_class is true, and none of the metrics compares images with those of the reference; leave it out, "
                f"or give some of {', '.join(comparing(OF_FILES))}"
            )
        if self.reference_label_column is not None and not (self.per_class or self.is_of_a_model):
            raise ValueError(
                f"reference_label_column is {self.reference_label_column!r} and is for --per_class true and "
                "bits_per_dim; leave it out"
            )

    @property
    def is_of_a_model(self) -> bool:
        """Whether no samples are scored."""
        return any(METRICS[name].needs_model for name in self.metrics)

    @property
    def has_held_out(self) -> bool:
        """Whether there are images that were not trained on."""
        return self.held_out is not None or self.held_out_split is not None

    @property
    def scored(self) -> list[str]:
        """Metrics to compute, with those that held-out images add."""
        return [*self.metrics, *(["authenticity"] if self.has_held_out and "authenticity" not in self.metrics else [])]

    @property
    def sets(self) -> list[str]:
        """Names of the sets of samples."""
        return self.compare or [str(self.samples)]

    def reference_data(self) -> DataConfig:
        """The reference in the terms of training."""
        prefix = "reference_"
        options = {name.removeprefix(prefix): value for name, value in vars(self).items() if name.startswith(prefix)}
        return DataConfig(name=self.reference, **options)

    def held_out_data(self) -> DataConfig:
        """The held-out images in the terms of training, transformed as the reference is."""
        of_reference = self.reference_data()
        if self.held_out is None:
            return replace(of_reference, split=str(self.held_out_split))
        split = self.held_out_split or "train"
        return replace(of_reference, name=self.held_out, config=None, revision=None, split=split)


@ending_in_one_sentence()
def main() -> None:
    """The console command."""
    config = parse_settings(EvaluateConfig, sys.argv[1:], "Score generated images against real ones.")
    from ddpm_hf.cli import scoring  # only now, as it loads torch

    scoring.run(config)


if __name__ == "__main__":
    main()
