"""How good images are: feature networks, the metrics, and one table that says what each metric is and needs.

Imports `files`, `images`, `launch`, and for bits per dimension `diffusion` and `randomness`. Start with table.py, then
base.py and evaluation.py. The public names below are loaded when they are first used, so that the table can be read
without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_hf.metrics.base import ImageMetric
    from ddpm_hf.metrics.features import DigitsFeatures
    from ddpm_hf.metrics.frechet import FrechetDistance, frechet_distance
    from ddpm_hf.metrics.inception_score import InceptionScore
    from ddpm_hf.metrics.kernel_distance import KernelDistance
    from ddpm_hf.metrics.manifold_metrics import DensityCoverage, ImprovedPrecisionRecall, manifolds, precision_recall
    from ddpm_hf.metrics.memorisation import Authenticity

__all__ = [
    "Authenticity",
    "DensityCoverage",
    "DigitsFeatures",
    "FrechetDistance",
    "ImageMetric",
    "ImprovedPrecisionRecall",
    "InceptionScore",
    "KernelDistance",
    "frechet_distance",
    "manifolds",
    "precision_recall",
]

_HOMES = {
    "Authenticity": "memorisation",
    "DensityCoverage": "manifold_metrics",
    "DigitsFeatures": "features",
    "FrechetDistance": "frechet",
    "ImageMetric": "base",
    "ImprovedPrecisionRecall": "manifold_metrics",
    "InceptionScore": "inception_score",
    "KernelDistance": "kernel_distance",
    "frechet_distance": "frechet",
    "manifolds": "manifold_metrics",
    "precision_recall": "manifold_metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
