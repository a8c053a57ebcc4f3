"""Curves for a person to look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_hf.files import written_whole
from ddpm_hf.metrics.table import ScoreKind


def save_curve(path: Path, values: Mapping[int, float], score: ScoreKind, held_out: float | None = None) -> None:
    """Draw a score over training steps.

    Args:
        path: Where the PNG goes.
        values: Step -> value.
        score: What the values are.
        held_out: The score of held-out images, which a perfect model would get; a dashed line.
    """
    # Slow to import, and not needed before there is something to draw.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    _draw_with_best(axes, values, score, "step")
    if held_out is not None:
        axes.axhline(held_out, linestyle="--", color="grey", label=f"held-out images: {held_out:.4g}")
        axes.legend()
    axes.set(xlabel="step", ylabel=score.title)
    if not score.higher_is_better and min(values.values()) > 0:  # a distance, which falls by factors
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    _write(figure, path)


def save_scan(path: Path, values: Mapping[float, float], score: ScoreKind, others: Mapping[str, float]) -> None:
    """Draw a score over the relative length of the average that drew the images.

    Args:
        path: Where the PNG goes.
        values: sigma_rel -> value.
        score: What the values are.
        others: Name -> value of what has no such length, such as held-out images; dashed lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    _draw_with_best(axes, values, score, "sigma_rel")
    for (name, value), colour in zip(others.items(), ("tab:orange", "grey"), strict=False):
        axes.axhline(value, linestyle="--", color=colour, label=f"{name}: {value:.4g}")
    if others:
        axes.legend()
    axes.set(xlabel="sigma_rel: length of the average over that of the run", ylabel=score.title)
    axes.grid(visible=True, alpha=0.3)
    _write(figure, path)


def _draw_with_best(axes: Any, values: Mapping[Any, float], score: ScoreKind, name: str) -> None:
    """Values of a score over what has a name, with the best of them in the title."""
    axes.plot(list(values), list(values.values()), marker="o")
    best = (max if score.higher_is_better else min)(values, key=lambda place: values[place])
    extreme = "highest" if score.higher_is_better else "lowest"
    axes.set_title(f"{extreme}: {values[best]:.4g} at {name} {best}")


def save_losses(path: Path, training: Mapping[int, float], held_out: Mapping[int, float]) -> None:
    """Draw the training loss and that on held-out images over training steps.

    Args:
        path: Where the PNG goes.
        training: Step -> mean loss of the steps since the last one.
        held_out: Step -> loss.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(training), list(training.values()), color="grey", alpha=0.6, label="training images")
    if held_out:
        axes.plot(list(held_out), list(held_out.values()), marker="o", label="held-out images")
        lowest = min(held_out, key=lambda step: held_out[step])
        axes.set_title(f"lowest on held-out images: {held_out[lowest]:.4g} at step {lowest}")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    _write(figure, path)


def save_bound(path: Path, terms: Tensor) -> None:
    """Draw the terms of the variational bound over time, as in figure 2 of Nichol & Dhariwal 2021.

    Args:
        path: Path of the PNG file.
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
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
