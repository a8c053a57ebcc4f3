"""Curves, drawn with matplotlib, which is an extra: pip install 'ddpm-hf[plot]'."""

from pathlib import Path

from torch import Tensor


def plot_bound(terms: Tensor, path: Path) -> None:
    """The terms of the bound over time, as in figure 2 of Nichol & Dhariwal 2021, to a picture.

    Args:
        terms: (N, T + 1) in bits/dim, as `likelihood.BitsPerDim.terms`; the mean over the images is drawn.
        path: of the picture; its ending says the format.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "the plot of the bound's terms needs matplotlib; install it with pip install 'ddpm-hf[plot]'"
        ) from error
    mean = terms.mean(dim=0).tolist()
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="t + 1", ylabel="bits/dim", title=f"{sum(mean):.3f} bits/dim in all"
    )
    axes.plot(range(1, len(mean)), mean[:-1], label="$L_t$, the first one the decoder's")
    axes.axhline(mean[-1], linestyle=":", label="$L_T$")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
