"""Which values of a data set become -1 and 1: those of its type, of the settings, or percentiles, measured once."""

import json
from contextlib import suppress

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ddpm_hf.data.image_cache import CachedImages
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.files import is_intact, sealed, written_whole
from ddpm_hf.pixels import LARGEST, PixelFormat

PERCENTILES = (0.1, 99.9)

SAMPLE = 2**22
"""Values of floating point that percentiles are measured on, at most, in each channel."""


def format_of(config: DataConfig, name: str, cached: CachedImages) -> PixelFormat:
    """The format of a data set.

    Raises:
        ValueError: it has no range of its own and none is given.
    """
    dtype = str(cached.images.dtype).removeprefix("torch.")
    if config.value_range != "percentile":
        return format_of_type(config, name, dtype, cached.shape[0], cached.images)
    low, high = _kept_percentiles(cached)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(
            f"data.value_range is percentile, and {name!r} has a channel in which nearly all values are equal "
            f"({low} to {high}); give two numbers"
        )
    return PixelFormat(dtype, tuple(low), tuple(high), _has_opacity(config, cached.shape[0]))


def format_of_type(
    config: DataConfig, name: str, dtype: str, channels: int, images: Tensor | None = None
) -> PixelFormat:
    """The format by the type and the settings alone.

    Args:
        config: The settings.
        name: The data set, for messages.
        dtype: Type of its values.
        channels: Number of its channels.
        images: All of them, where they are at hand, for the message.

    Raises:
        ValueError: the type has no range of its own and none is given.
    """
    alpha = _has_opacity(config, channels)
    if isinstance(config.value_range, tuple):
        low, high = config.value_range
        return PixelFormat(dtype, (low,), (high,), alpha)
    if dtype in LARGEST:
        return PixelFormat(dtype, (0,), (LARGEST[dtype],), alpha)
    there = "" if images is None else f" from {float(images.min()):.4g} to {float(images.max()):.4g}"
    raise ValueError(
        f"the images of {name!r} hold {dtype} values{there}, which have no range of their own; give data.value_range "
        "[low, high], or percentile"
    )


def _has_opacity(config: DataConfig, channels: int) -> bool:
    return config.alpha == "channel" and channels in (2, 4)


def _kept_percentiles(cached: CachedImages) -> tuple[list[float], list[float]]:
    """Percentiles of each channel, from a file beside the images or measured now."""
    path = cached.folder / "percentiles.json"
    with FileLock(cached.folder.with_name(f"{cached.folder.name}.lock")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_bytes())
            if is_intact(found) and found["percentiles"] == list(PERCENTILES):
                return found["low"], found["high"]
        low, high = percentiles(cached.images)
        with suppress(OSError), written_whole(path) as temporary:  # without it they are measured again next time
            kept = {"percentiles": list(PERCENTILES), "low": low, "high": high}
            temporary.write_text(json.dumps(sealed(kept)) + "\n")
    return low, high


def percentiles(images: Tensor) -> tuple[list[float], list[float]]:
    """`PERCENTILES` of the values in each channel of ``(N, C, H, W)``.

    Those of whole numbers are of all values. Floating point is measured on evenly chosen images where there are many.
    """
    name = str(images.dtype).removeprefix("torch.")
    if name in LARGEST:
        counts = np.zeros((images.shape[1], LARGEST[name] + 1), dtype=np.int64)
        for start in range(0, len(images), 1024):
            for channel, values in enumerate(images[start : start + 1024].numpy().swapaxes(0, 1)):
                counts[channel] += np.bincount(values.ravel(), minlength=counts.shape[1])
        shares = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
        ends = [[float(np.searchsorted(share, percent / 100)) for share in shares] for percent in PERCENTILES]
        return ends[0], ends[1]
    pixels = images.shape[2] * images.shape[3]
    count = min(len(images), max(1, SAMPLE // pixels))
    chosen = images[torch.linspace(0, len(images) - 1, count).round().long()].float().numpy()
    low, high = np.percentile(chosen.swapaxes(0, 1).reshape(images.shape[1], -1), PERCENTILES, axis=1)
    return [float(value) for value in low], [float(value) for value in high]
