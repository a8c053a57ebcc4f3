"""Scores of each class: its generated images against the real ones of the same class."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddpm_hf.metrics import base
from ddpm_hf.metrics.evaluation import Evaluation, Score
from ddpm_hf.metrics.extractors import Extractor
from ddpm_hf.metrics.frechet import notes_if_few
from ddpm_hf.metrics.table import comparing


@dataclass(frozen=True)
class ClassScores:
    """The scores of the classes of one set of images.

    Args:
        classes: Class -> score -> value and error.
        num_images: Class -> how many generated images it has.
        reference_images: Class -> how many real ones.
        notes: What a reader of the scores must know.
    """

    classes: dict[str, dict[str, Score]]
    num_images: dict[str, int]
    reference_images: dict[str, int]
    notes: list[str]

    @property
    def mean(self) -> dict[str, Score]:
        """Score -> mean over classes, each counted once; its error is that of a mean of independent values."""
        return {name: _mean([found[name] for found in self.classes.values()]) for name in self.names}

    @property
    def names(self) -> list[str]:
        """Those of the scores, in the order of the table."""
        return list(next(iter(self.classes.values())))

    def to_dict(self) -> dict[str, Any]:
        """In the types of JSON; errors are there where they were asked for."""
        mean = self.mean
        errors = {name: _errors({of: found[name] for of, found in self.classes.items()}) for name in self.names}
        return {
            "scores": {name: {of: found[name].value for of, found in self.classes.items()} for name in self.names},
            "errors": {name: found for name, found in errors.items() if found},
            "mean": {name: score.value for name, score in mean.items()},
            "mean_errors": _errors(mean),
            "num_images": self.num_images,
            "reference_images": self.reference_images,
            "notes": self.notes,
        }

    def table(self, name: str) -> str:
        """In markdown: a row for each class, and the last one for their mean.

        Args:
            name: The set of images.
        """
        columns = ["class", "images", "reference", *self.names]
        lines = [f"Classes of {name}:", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        rows = [(of, self.num_images[of], self.reference_images[of], found) for of, found in self.classes.items()]
        in_all = sum(self.num_images.values()), sum(self.reference_images.values())
        for of, generated, real, found in [*rows, ("mean of the classes", *in_all, self.mean)]:
            lines.append(f"| {of} | {generated} | {real} | {' | '.join(str(found[column]) for column in self.names)} |")
        return "\n".join([*lines, *(f"\nNote: {note}." for note in self.notes)]) + "\n"


def score_by_class(
    metrics: Sequence[str],
    extractor: Extractor,
    fake: Tensor,
    real: Tensor,
    members: Mapping[str, tuple[Tensor, Tensor]],
    bootstrap: int = 0,
) -> ClassScores:
    """Score each class as if there were no other.

    Args:
        metrics: Names of the table; those that compare with no real images are left out.
        extractor: The feature network.
        fake: Features ``(N, D)`` of the generated images.
        real: Features ``(M, D)`` of the real ones.
        members: Class -> the rows of its generated images and those of its real ones, int64.
        bootstrap: Sets drawn anew for the errors of each class; 0 gives none.

    Raises:
        ValueError: as the metrics do, as where a class has too few images.
    """
    names = comparing(metrics)
    with _without_warnings():
        classes = {
            of: Evaluation(names, extractor, real[reals], bootstrap).score(fake[fakes])
            for of, (fakes, reals) in members.items()
        }
    counts = {of: (len(fakes), len(reals)) for of, (fakes, reals) in members.items()}
    smallest = min(counts, key=lambda of: min(counts[of]))
    few = notes_if_few(min(counts[smallest]), fake.shape[1]) if "fid" in names else []
    return ClassScores(
        classes,
        {of: generated for of, (generated, _) in counts.items()},
        {of: reals for of, (_, reals) in counts.items()},
        [f"in the smallest class, {smallest}: {note}" for note in few],
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The notes of metrics are not logged, which hundreds of classes would repeat; one is kept, of the smallest."""
    disabled, base.logger.disabled = base.logger.disabled, True
    try:
        yield
    finally:
        base.logger.disabled = disabled


def _mean(scores: Sequence[Score]) -> Score:
    errors = [score.error for score in scores if score.error is not None]
    error = math.hypot(*errors) / len(errors) if errors else None
    return Score(math.fsum(score.value for score in scores) / len(scores), error)


def _errors(scores: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.error for name, score in scores.items() if score.error is not None}
