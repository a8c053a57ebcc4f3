"""Samples, and ddpm-hf-evaluate as a user runs it on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.cli import evaluate
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.images import save_png, to_pil
from tests.runs import Fault, Started


def fakes(number: int = 60, seed: int = 0, noise: int = 40) -> Tensor:
    """Digits of the test part with noise, uint8."""
    digits = load_cached_images(DataConfig(split="test")).images[seed * number : (seed + 1) * number]
    generator = torch.Generator().manual_seed(seed)
    return (digits.int() + torch.randint(-noise, noise + 1, digits.shape, generator=generator)).clamp(0, 255).byte()


def write(folder: Path, images: Tensor) -> Path:
    for i, image in enumerate(to_pil(images)):
        save_png(image, folder / "000000" / f"{i:06d}.png")
    return folder


def start(output: Path, *arguments: object, processes: int = 1, fault: Fault | None = None) -> Started:
    usual = ["--reference", "digits", "--reference_split", "train[:300]", "--extractor", "digits", "--threads", 1]
    return Started([*usual, *arguments], output, processes, fault, main=evaluate.main)


def results(output: Path, *arguments: object, processes: int = 1) -> dict[str, Any]:
    run = start(output, *arguments, processes=processes)
    assert run.wait() == [0] * processes, run.said()
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def values(output: Path, *arguments: object, processes: int = 1) -> dict[str, float]:
    """The scores of the one set of samples."""
    scores = results(output, *arguments, processes=processes)["scores"]
    return {name: value for name, entry in scores.items() for value in entry.values()}


def refusal(output: Path, *arguments: object) -> str:
    """The one sentence of a command that ends with status 2."""
    run = start(output, *arguments)
    assert run.wait() == [2], run.said()
    sentences = [line for line in run.said().splitlines() if "error:" in line]
    assert len(sentences) == 1, run.said()
    assert "Traceback" not in run.said()
    return sentences[0].partition("error: ")[2]


def statistics(folder: Path, **changes: Any) -> Path:
    content = {"mu": np.zeros(64), "sigma": np.eye(64)} | changes
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "reference.npz", **content)
    return folder / "reference.npz"
