"""What is known of a training run while it trains and afterwards: its curves, its grids, its training images."""

import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ddpm_hf.command_line import config_of
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.demo.drawing import Drawn, enlarged
from ddpm_hf.files import read_json
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.intake import Intake
from ddpm_hf.metrics.neighbours import distances, nearest
from ddpm_hf.metrics.reference import FeatureExtraction
from ddpm_hf.metrics.table import RATIO, SCORES
from ddpm_hf.training.log import read_log
from ddpm_hf.training.settings import Config

MOST_POINTS = 1000
"""Points of a curve that are shown; of longer ones every second, third, ... point."""
GRIDS = 12
"""Grids that are shown; of more, some from first to last."""
LOSSES = {"loss": "training images", "held_out_loss": "held-out images"}
OTHERS = {
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
    "images_per_second": "images/s",
    "memory_gib": "memory, GiB",
}


class Run:
    """The folder of a training run.

    Args:
        folder: The folder, with config.yaml and metrics.jsonl.
        accelerator: Where features of images are computed.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self._accelerator = folder, accelerator
        self._lock = threading.Lock()
        self._real: tuple[ImageData, FeatureExtraction, Tensor] | None = None

    @property
    def state(self) -> str:
        """Changes when there is something new to show."""
        files = [self.folder / "metrics.jsonl", self.folder / "metrics.json", *self._grids()]
        return " ".join(f"{path.name} {path.stat().st_size}" for path in files if path.is_file())

    def losses(self) -> list[dict[str, Any]]:
        """Points of the loss on training images and, where the run has it, on held-out ones: step, value, images."""
        lines = read_log(self.folder / "metrics.jsonl")
        return [
            {"step": step, "loss": value, "images": of}
            for name, of in LOSSES.items()
            for step, value in _points(lines, name)
        ]

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Title of each other curve -> its points, step and value; scores first."""
        lines = read_log(self.folder / "metrics.jsonl")
        titles = {name: score.title for name, score in SCORES.items()} | OTHERS
        found = {title: _points(lines, name) for name, title in titles.items()}
        return {
            title: [{"step": step, "value": value} for step, value in points]
            for title, points in found.items()
            if points
        }

    def grids(self) -> list[tuple[Image.Image, str]]:
        """Grids of samples from the first to the newest, and their steps."""
        paths = self._grids()
        picked = torch.linspace(0, len(paths) - 1, min(GRIDS, len(paths))).round().int().tolist()
        return list(_opened([paths[i] for i in picked]))

    def _grids(self) -> list[Path]:
        return sorted((self.folder / "samples").glob("step-*.png"))

    def scores(self) -> str:
        """A sentence with the scores of the finished run; empty before."""
        path = self.folder / "metrics.json"
        try:
            found = read_json(path)["scores"] if path.is_file() else {}
            values = [
                f"{SCORES[name].title if name in SCORES else name} {entry['samples']:.4g}"
                + (f" ({entry[RATIO]:.3g} times that of held-out images)" if RATIO in entry else "")
                for name, entry in found.items()
            ]
        except (ValueError, KeyError, TypeError):  # of another version, or damaged
            return ""
        return f"The run has ended: {', '.join(values)}." if values else ""

    def progress(self) -> str:
        """How far it is."""
        lines = read_log(self.folder / "metrics.jsonl")
        if not lines:
            return "The run has written no line yet."
        return f"Step {lines[-1]['step']:,} of {self.config.training.steps:,}."

    @cached_property
    def config(self) -> Config:
        """Its settings.

        Raises:
            ValueError: they cannot be read.
        """
        path = self.folder / "config.yaml"
        return config_of([f"--config={path}", "--quiet"], path)

    def neighbours(self, drawn: Drawn, count: int) -> list[list[tuple[Image.Image, str]]]:
        """Each image beside the training images nearest to it, nearest first, with distances.

        They are measured in the features of the network that scores the run, or of the pixels where there is none. At a
        distance of 0, or one much smaller than others, the image is a copy.

        Args:
            drawn: The images.
            count: Number of neighbours.

        Raises:
            ValueError: the training images cannot be had, in one sentence.
        """
        with self._lock:
            self._real = self._real or self._training_images()
        data, features_of, real = self._real
        if data.shape != drawn.model.shape or data.format != drawn.model.pipe.format:
            raise ValueError(f"the training images are {data.shape} now, and the model's are {drawn.model.shape}")
        rows = []
        features = features_of.of(drawn.values)
        found = nearest(features, real, min(count, len(real)))
        for picture, feature, row in zip(drawn.pictures, features, found, strict=True):
            pictures = enlarged(drawn.model, data.images[row])
            captions = [f"{distance:.3g} away" for distance in distances(feature, real[row]).tolist()]
            rows.append([picture, *zip(pictures, captions, strict=True)])
        return rows

    def _training_images(self) -> tuple[ImageData, FeatureExtraction, Tensor]:
        config = self.config
        if config.data.streaming:
            raise ValueError("the run streams its training images, so that they are not at hand to be searched")
        data, evaluation = load_cached_images(config.data), config.evaluation
        accelerator = self._accelerator
        extractor = load_extractor(evaluation.extractor or "pixels", evaluation.extractor_weights)
        seen = None if evaluation.extractor_channels is None else tuple(evaluation.extractor_channels)
        intake = Intake(data.format, seen)
        features_of = FeatureExtraction(extractor.to(accelerator.device), accelerator, intake=intake)
        return data, features_of, features_of.kept(data.images, data.fingerprint)


def _points(lines: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Step and value of each line that has one, thinned out where there are many."""
    points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    stride = -(-len(points) // MOST_POINTS) or 1
    return points[::-stride][::-1]  # the newest is among them


def _opened(paths: list[Path]) -> Iterator[tuple[Image.Image, str]]:
    for path in paths:
        try:
            with Image.open(path) as picture:
                yield picture.copy(), f"step {int(path.stem.partition('-')[2]):,}"
        except (OSError, ValueError):  # half written by another program, or of another name
            continue
