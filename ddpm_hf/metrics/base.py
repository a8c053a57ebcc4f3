"""What all metrics of images share: torchmetrics' interface, features of real and generated images as state, errors."""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from ddpm_hf.settings import as_int

logger = logging.getLogger(__name__)


class ImageMetric(Metric):
    """Scores of generated images, from the features of these and of real ones.

    A subclass has a `score` and a row in `ddpm_hf.metrics.table`. The state is shared between processes.

    Args:
        feature: Network from uint8 images ``(B, C, H, W)`` to features ``(B, D)``; None where `update` is given
            features in place of images.
        reset_real_features: Whether `reset` forgets the real images too. Without it, several sets of generated images
            are scored against the same real ones, whose state is computed once.
        options: Those of any torchmetrics metric.

    Examples:
        >>> from ddpm_hf.metrics import DigitsFeatures, ImprovedPrecisionRecall
        >>> metric = ImprovedPrecisionRecall(DigitsFeatures.load())
        >>> images = torch.randint(256, (200, 1, 8, 8), dtype=torch.uint8)
        >>> metric.update(images[:100], real=True)  # in as many batches as you like
        >>> metric.update(images[100:], real=False)
        >>> metric.compute()
        {'precision': tensor(...), 'recall': tensor(...)}
    """

    is_differentiable = False
    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, feature: nn.Module | None = None, *, reset_real_features: bool = True, **options: Any) -> None:
        super().__init__(**{"dist_sync_fn": _gathered, **options})
        self.feature = feature
        self.reset_real_features = reset_real_features
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, real: Tensor, fake: Tensor) -> Mapping[str, Tensor | float]:
        """Score name -> value, from what `summary` makes of all real and of all generated images.

        Raises:
            ValueError: there are too few, or they do not fit together.
        """

    def summary(self, features: Tensor) -> Tensor:
        """What is kept of a batch of features ``(B, D)``; batches are put together along the first axis."""
        return features

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Take in a batch.

        Args:
            images: uint8 ``(B, C, H, W)``; or features ``(B, D)``, where the metric has no network.
            real: Whether they are real ones.

        Raises:
            ValueError: their features are no ``(B, D)`` of finite numbers.
        """
        side = self.real_features if real else self.fake_features
        side.append(self.summary(self._features(images)))

    def notes(self) -> list[str]:
        """What a reader of the scores must know: that there are too few images for them to mean much, and the like."""
        return []

    def compute(self) -> dict[str, Tensor]:
        """Score name -> float64 scalar.

        Raises:
            ValueError: no generated images were given, or ones with other features than the real ones have; a score
                is not finite; or as `score`.
        """
        real, fake = self._sides()
        if len(real) and real.shape[1:] != fake.shape[1:]:
            raise ValueError(
                f"real and generated images have {real.shape[-1]} and {fake.shape[-1]} features each; use the same "
                "feature network for both"
            )
        found = self.score(real, fake)
        scores = {name: torch.as_tensor(value, dtype=torch.float64, device="cpu") for name, value in found.items()}
        for name, value in scores.items():
            if not value.isfinite():
                raise ValueError(f"the score {name} is {value.item()}: the features are too large to compute with")
        for note in self.notes():
            logger.warning("%s", note)
        return scores

    @torch.no_grad()
    def errors(self, images: Tensor, draws: int) -> dict[str, Tensor]:
        """Score name -> standard error, float64: the spread over sets drawn anew from the generated ones (bootstrap).

        Args:
            images: The generated images (or features) of the present state, all of them.
            draws: How many sets of as many images are drawn with replacement, from a fixed seed; at least 2.

        Raises:
            ValueError: there are fewer draws; or as `score`.
        """
        if as_int("draws", draws) < 2:
            raise ValueError(f"draws={draws} must be 2 or more; a standard error is a spread.")
        features, (real, _) = self._features(images), self._sides()
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(draws):
            drawn = torch.randint(len(features), (len(features),), generator=generator)
            found.append(self.score(real, self.summary(features[drawn])))
        return {name: torch.tensor([float(one[name]) for one in found], dtype=torch.float64).std() for name in found[0]}

    def reset(self) -> None:
        """Forget all images, or only the generated ones."""
        kept = [] if self.reset_real_features else list(self.real_features)
        super().reset()
        self.real_features = kept

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = images if self.feature is None else self.feature(images)
        if features.ndim != 2 or features.shape[1] == 0:
            raise ValueError(f"features are of shape {tuple(features.shape)} and must be (B, D), a row for each image")
        if not features.isfinite().all():
            raise ValueError("features hold numbers that are not finite; look at the images and the feature network")
        return features

    def _sides(self) -> tuple[Tensor, Tensor]:
        if not len(self.fake_features):
            raise ValueError("no generated images were given; call update(images, real=False) before compute")
        fake = dim_zero_cat(self.fake_features)
        return (dim_zero_cat(self.real_features) if len(self.real_features) else fake[:0]), fake


class MeanOverImages(ImageMetric):
    """A metric whose scores are means over images, so that their standard errors have a closed form."""

    @abstractmethod
    def parts(self, real: Tensor, fake: Tensor) -> Mapping[str, Tensor]:
        """Score name -> what each image adds to it, ``(N,)``; the score is the mean."""

    def score(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The means."""
        self._parts = {name: part.double() for name, part in self.parts(real, fake).items()}
        return {name: part.mean() for name, part in self._parts.items()}

    def errors(self, images: Tensor, draws: int) -> dict[str, Tensor]:
        """Standard errors of the means. They are those of the present state, and nothing is drawn."""
        self.compute()  # which is not computed anew
        return {name: part.std(correction=0).cpu() / math.sqrt(len(part)) for name, part in self._parts.items()}


def _gathered(own: Tensor, group: Any = None) -> list[Tensor]:
    """The tensors of all processes, whose first axes may differ; torchmetrics' own fails where one has no images."""
    kinds: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(kinds, (len(own), own.shape[1:], own.dtype), group)
    _, shape, dtype = max(kinds, key=lambda kind: kind[0])
    if not len(own):
        own = torch.zeros(0, *shape, dtype=dtype, device=own.device)
    return gather_all_tensors(own, group)
