"""Curves for a person to look at."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def save_curve(path: Path, values: Mapping[int, float], name: str, floor: float | None = None) -> None:
    """Draw values over training steps.

    Args:
        path: Of the PNG.
        values: Step -> value.
        name: Of the values.
        floor: What a perfect model would get, a dashed line.
    """
    # Slow to import, and not needed before there is something to draw.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(values), list(values.values()), marker="o")
    best = min(values, key=lambda step: values[step])
    axes.set_title(f"lowest: {values[best]:.4g} at step {best}")
    if floor is not None:
        axes.axhline(floor, linestyle="--", color="grey", label=f"held-out images: {floor:.4g}")
        axes.legend()
    axes.set(xlabel="step", ylabel=name, yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    _write(figure, path)


def save_bound(path: Path, terms: Tensor) -> None:
    """Draw the terms of the variational bound over time, as in figure 2 of Nichol & Dhariwal 2021.

    Args:
        path: Of the PNG.
        terms: ``(N, T + 1)`` in bits/dim, those of `BitsPerDim`; their means are drawn.
    """
    from matplotlib.figure import Figure

    mean = terms.mean(dim=0).tolist()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(mean)), mean[:-1], label="term of t; the first is the decoder's")
    axes.axhline(mean[-1], linestyle="--", color="grey", label=f"term of the prior: {mean[-1]:.3g}")
    axes.set_title(f"{sum(mean):.4g} bits/dim in all")
    axes.set(xlabel="t + 1", ylabel="bits/dim", xscale="log", yscale="log")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    """Under a temporary name that is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
