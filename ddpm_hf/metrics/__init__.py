"""Scores of generated images: feature networks, the Frechet distance, precision and recall, density and coverage."""

from ddpm_hf.metrics.features import DigitsFeatures
from ddpm_hf.metrics.fid import FrechetDistance, frechet_distance
from ddpm_hf.metrics.precision_recall import DensityCoverage, ImprovedPrecisionRecall, manifolds, precision_recall

__all__ = [
    "DensityCoverage",
    "DigitsFeatures",
    "FrechetDistance",
    "ImprovedPrecisionRecall",
    "frechet_distance",
    "manifolds",
    "precision_recall",
]
