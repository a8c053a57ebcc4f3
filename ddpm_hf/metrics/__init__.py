"""Scores of generated images: features, the Frechet distance, precision and recall."""

from ddpm_hf.metrics.features import DigitsFeatures
from ddpm_hf.metrics.fid import frechet_distance
from ddpm_hf.metrics.precision_recall import precision_recall

__all__ = ["DigitsFeatures", "frechet_distance", "precision_recall"]
