"""The table of metrics. Commands, training, model cards and pictures read what they know of a metric here.

To add a metric, write its class (see `ddpm_hf.metrics.base`) and give it a row. Nothing here loads torch, so that a
command can list the metrics and check its settings at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class ScoreKind:
    """One of the numbers that a metric gives.

    Args:
        name: Its key in files and settings.
        title: Its name for a reader.
        higher_is_better: Whether the best value is the highest one.
    """

    name: str
    title: str
    higher_is_better: bool

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value beats an earlier one. A value that is not a number never does; any other value beats None."""
        if than is None:
            return value == value
        return value > than if self.higher_is_better else value < than


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Args:
        name: What the user calls it.
        implementation: Its class, as ``module:name``; for a metric of a model, the function that computes it.
        help: What it is, in one line.
        scores: The numbers that it gives.
        fewest_images: How many images it needs at least, both generated and real ones.
        reference: What it needs of the real images: nothing (None), the images themselves, or "statistics", where
            their mean and covariance do as well.
        needs_class_scores: Whether it sees the class scores of the feature network in place of the features.
        needs_labels: Whether it needs the class that each generated image was to show.
        needs_model: Whether it scores a model on real images, not generated images.
    """

    name: str
    implementation: str
    help: str
    scores: tuple[ScoreKind, ...]
    fewest_images: int = 2
    reference: Literal["images", "statistics"] | None = None
    needs_class_scores: bool = False
    needs_labels: bool = False
    needs_model: bool = False

    def load(self) -> Callable[..., Any]:
        """Import the class (or function)."""
        loaded: Callable[..., Any] = resolve_name(self.implementation)
        return loaded


_ROWS = (
    Metric(
        "fid",
        "ddpm_hf.metrics.frechet:FrechetDistance",
        "Frechet distance of the Gaussians of two sets of features (Heusel et al. 2017)",
        (ScoreKind("fid", "FID", higher_is_better=False),),
        reference="statistics",
    ),
    Metric(
        "kid",
        "ddpm_hf.metrics.kernel_distance:KernelDistance",
        "kernel distance, the mean over subsets of 1,000 images (Binkowski et al. 2018)",
        (ScoreKind("kid", "KID", higher_is_better=False),),
        reference="images",
    ),
    Metric(
        "is",
        "ddpm_hf.metrics.inception_score:InceptionScore",
        "Inception score, the mean over ten parts (Salimans et al. 2016)",
        (ScoreKind("is", "Inception score", higher_is_better=True),),
        fewest_images=20,
        needs_class_scores=True,
    ),
    Metric(
        "precision_recall",
        "ddpm_hf.metrics.manifold_metrics:ImprovedPrecisionRecall",
        "improved precision and recall with three neighbours (Kynkaanniemi et al. 2019)",
        (
            ScoreKind("precision", "Precision", higher_is_better=True),
            ScoreKind("recall", "Recall", higher_is_better=True),
        ),
        fewest_images=4,
        reference="images",
    ),
    Metric(
        "density_coverage",
        "ddpm_hf.metrics.manifold_metrics:DensityCoverage",
        "density and coverage with five neighbours (Naeem et al. 2020)",
        (
            ScoreKind("density", "Density", higher_is_better=True),
            ScoreKind("coverage", "Coverage", higher_is_better=True),
        ),
        fewest_images=6,
        reference="images",
    ),
    Metric(
        "accuracy",
        "ddpm_hf.metrics.accuracy:ClassAccuracy",
        "share of the images that the feature network takes for the class that they were to show",
        (ScoreKind("accuracy", "Accuracy", higher_is_better=True),),
        needs_class_scores=True,
        needs_labels=True,
    ),
    Metric(
        "authenticity",
        "ddpm_hf.metrics.memorisation:Authenticity",
        "share of the images that are no copies of real ones (Alaa et al. 2022)",
        (ScoreKind("authenticity", "Authenticity", higher_is_better=True),),
        reference="images",
    ),
    Metric(
        "bits_per_dim",
        "ddpm_hf.metrics.bits_per_dim:bits_per_dim",
        "bits per dimension that a model needs for real images",
        (ScoreKind("bits_per_dim", "Bits/dim", higher_is_better=False),),
        needs_model=True,
    ),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
SCORES: dict[str, ScoreKind] = {score.name: score for row in _ROWS for score in row.scores}

IN_TRAINING = tuple(row.name for row in _ROWS if not row.needs_model)
"""Metrics of images that a training run draws: it knows which class each one was to show."""
IN_COMMAND = tuple(row.name for row in _ROWS if not row.needs_labels)
"""Metrics that ddpm-hf-evaluate knows."""
OF_FILES = tuple(name for name in IN_COMMAND if not METRICS[name].needs_model)
"""Those that it computes of files of images."""

SAMPLES, HELD_OUT, RATIO = "samples", "held_out", "ratio"
"""Sets in results: images that a training run drew, real ones not trained on, and scores divided by those of these."""

# The types of settings, which the command line checks and shows.
if TYPE_CHECKING:
    CommandMetric: TypeAlias = str
    ScoreName: TypeAlias = str
    TrainingMetric: TypeAlias = str
else:
    TrainingMetric = Literal[IN_TRAINING]
    CommandMetric = Literal[IN_COMMAND]
    ScoreName = Literal[tuple(score.name for name in IN_TRAINING for score in METRICS[name].scores)]


def rows_of(names: Sequence[str]) -> list[Metric]:
    """The rows of these metrics, in the order of the table."""
    return [row for row in _ROWS if row.name in names]


def scores_of(names: Sequence[str]) -> list[str]:
    """The names of the scores that these metrics give."""
    return [score.name for row in rows_of(names) for score in row.scores]


def comparing(names: Sequence[str]) -> list[str]:
    """Those of these metrics that compare with real images, and so say something of one class alone."""
    return [row.name for row in rows_of(names) if row.reference is not None]


def fewest_images(names: Sequence[str]) -> int:
    """How many images these metrics need at least, both generated and real ones."""
    return max([2, *(row.fewest_images for row in rows_of(names))])


WITH_WEIGHTS = ("inception", "vgg16", "dinov2")
"""The feature networks whose weights may come from a file that the user names."""


def check_weights_of(extractor: str | None, weights: object, prefix: str = "") -> None:
    """See that weights are given for a feature network that takes them from a file.

    Raises:
        ValueError: it has its own, or is itself a file or folder.
    """
    if weights is not None and extractor is not None and extractor not in WITH_WEIGHTS:
        raise ValueError(
            f"{prefix}extractor_weights is {weights}, and the extractor {extractor} takes none; it is for "
            f"{', '.join(WITH_WEIGHTS)}"
        )


def metrics_in_help(names: Sequence[str]) -> Callable[[Class], Class]:
    """Decorator of a dataclass of settings: "{metrics}" in its docstring becomes the names and helps of metrics."""

    def filled(kind: Class) -> Class:
        text = "; ".join(f"{row.name} ({row.help})" for row in rows_of(names))
        kind.__doc__ = (kind.__doc__ or "").replace("{metrics}", text)
        return kind

    return filled
