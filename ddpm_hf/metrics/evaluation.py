"""From sets of images to their scores: what a training run and ddpm-hf-evaluate both compute and write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ddpm_hf.metrics.base import ImageMetric
from ddpm_hf.metrics.extractors import Extractor
from ddpm_hf.metrics.memorisation import CopyingTest, copying_test
from ddpm_hf.metrics.reference import Statistics
from ddpm_hf.metrics.table import HELD_OUT, RATIO, Metric, rows_of


@dataclass(frozen=True)
class Score:
    """A value and its standard error over samples drawn anew; None where none was asked for."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.error is None else f"{self.value:.4g} ± {1.96 * self.error:.2g}"


@dataclass(frozen=True)
class Results:
    """The scores of one or several sets of images. Each metrics.json is `to_dict` and what its writer adds.

    Args:
        sets: Set -> score -> value and error.
        num_images: Set -> how many images it has.
        reference_images: How many real ones it was compared with; None where only their statistics were at hand.
        extractor: Name of the feature network; None where none was used.
        extractor_sha256: Hash of its weights.
        notes: What a reader of the scores must know, such as that there were too few images.
        copying: Set -> whether its images are copies of real ones; empty where there are no held-out images.
    """

    sets: dict[str, dict[str, Score]] = field(default_factory=dict)
    num_images: dict[str, int] = field(default_factory=dict)
    reference_images: int | None = None
    extractor: str | None = None
    extractor_sha256: str | None = None
    copying: dict[str, CopyingTest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Score -> set -> value; where there are held-out images, also the `ratios` to theirs."""
        sets = {of: {name: score.value for name, score in found.items()} for of, found in self.sets.items()}
        return {
            name: {of: found[name] for of, found in (sets | self.ratios).items() if name in found}
            for name in self.names
        }

    @property
    def ratios(self) -> dict[str, dict[str, float]]:
        """Score -> value over that of the held-out images, under the key "ratio", or "ratio SET" of several sets."""
        of_held_out, samples = self.of(HELD_OUT), [name for name in self.sets if name != HELD_OUT]
        if not of_held_out:
            return {}
        return {
            RATIO if len(samples) == 1 else f"{RATIO} {name}": {
                score: value / of_held_out[score]
                for score, value in self.of(name).items()
                if of_held_out.get(score, 0) > 0  # the kernel distance of equal distributions lies about zero
            }
            for name in samples
        }

    @property
    def names(self) -> list[str]:
        """Those of all scores."""
        return list(dict.fromkeys(name for found in self.sets.values() for name in found))

    def of(self, name: str) -> dict[str, float]:
        """Score -> value, of one set."""
        return {score: found.value for score, found in self.sets.get(name, {}).items()}

    def to_dict(self) -> dict[str, Any]:
        """In the types of JSON; errors are those of the scores that have one."""
        errors: dict[str, dict[str, float]] = {}
        for of, found in self.sets.items():
            for name, score in found.items():
                if score.error is not None:
                    errors.setdefault(name, {})[of] = score.error
        return {
            "scores": self.scores,
            "errors": errors,
            "num_images": self.num_images,
            "extractor": self.extractor,
            "extractor_sha256": self.extractor_sha256,
            "reference_images": self.reference_images,
            "notes": self.notes,
            "copying": {name: asdict(test) for name, test in self.copying.items()},
        }


class Evaluation:
    """Scores sets of images against one reference, whose part of each metric is computed once.

    Args:
        metrics: Names of the table.
        extractor: The feature network.
        real: Features ``(M, D)`` of the real images, or their statistics.
        bootstrap: Sets drawn anew for the errors; 0 gives none.
        notes: What a reader must know of the features.

    Raises:
        ValueError: a metric needs the real images where only their statistics are given, or class scores that the
            feature network does not have.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        extractor: Extractor,
        real: Tensor | Statistics,
        bootstrap: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        self.extractor, self.bootstrap, self._real = extractor, bootstrap, real
        self.reference_images = None if isinstance(real, Statistics) else len(real)
        self._notes: dict[str, None] = dict.fromkeys(notes)
        self._metrics = [(row, self._with_reference(row, real)) for row in rows_of(metrics)]

    def _with_reference(self, row: Metric, real: Tensor | Statistics) -> ImageMetric:
        metric: ImageMetric = row.load()(reset_real_features=False, sync_on_compute=False)
        if row.needs_class_scores:
            self.extractor.check_classes()
        if row.reference is None:
            return metric
        if not isinstance(real, Statistics):
            metric.update(real, real=True)
        elif row.reference == "statistics":
            metric.update_statistics(real.mean, real.covariance)  # type: ignore[operator]
        else:
            raise ValueError(f"the metric {row.name!r} needs the reference's images, not only their statistics")
        return metric

    def score(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Score]:
        """The scores of one set, in the order of the table.

        Args:
            features: ``(N, D)``.
            labels: int64 ``(N,)``, the classes that the images were to show; without them, no metric that needs them.

        Raises:
            ValueError: as the metrics do.
        """
        scores: dict[str, Score] = {}
        for row, metric in self._metrics:
            if row.needs_labels and labels is None:
                continue
            given = self.extractor.class_scores(features) if row.needs_class_scores else features
            metric.reset()
            metric.update(given, real=False, **({"labels": labels} if row.needs_labels else {}))
            found = metric.compute()
            self._notes |= dict.fromkeys(metric.notes())
            errors = metric.errors(given, self.bootstrap) if self.bootstrap else {}
            scores |= {
                name: Score(value.item(), errors[name].item() if errors else None) for name, value in found.items()
            }
            metric.reset()
        return scores

    def copying(self, features: Tensor, held_out: Tensor) -> CopyingTest | None:
        """Whether images are copies of the real ones; None where only statistics of these are at hand.

        Args:
            features: ``(N, D)`` of the generated images.
            held_out: ``(L, D)`` of real images that were not trained on.
        """
        return copying_test(self._real, features, held_out) if isinstance(self._real, Tensor) else None

    def results(
        self,
        sets: Mapping[str, dict[str, Score]],
        num_images: Mapping[str, int],
        copying: Mapping[str, CopyingTest] | None = None,
    ) -> Results:
        """What is written of sets that were scored."""
        return Results(
            dict(sets),
            dict(num_images),
            self.reference_images,
            self.extractor.name,
            self.extractor.sha256,
            dict(copying or {}),
            list(self._notes),
        )
