"""Which network fits images of a size: one table, for all that the settings of a network leave to the images.

Widths at 32 pixels are those of Ho et al. (2020) for CIFAR-10. Larger images have narrower first levels, which hold
most of the pixels and so cost most, and more levels, so that each network ends at about 4 x 4 to 8 x 8. What each row
costs is measured in docs/benchmarks.md (`python -m benchmarks sizes`).

Nothing here loads torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ddpm_hf.models.unet_2d_config import DOWN_OF_UP, LARGEST_SIDE, UP_OF_DOWN, check_numbers, without_old_prefix


class NetworkSize(NamedTuple):
    """The network for images of up to ``side`` x ``side`` pixels.

    Attributes:
        side: Side of a square of as many pixels as the largest images.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks of each level.
    """

    side: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int


SIZES: Final = (
    NetworkSize(16, (64, 128, 128), 2),
    NetworkSize(32, (128, 256, 256, 256), 2),
    NetworkSize(64, (64, 128, 256, 512), 2),
    NetworkSize(128, (64, 128, 256, 256, 512), 2),
    NetworkSize(256, (64, 64, 128, 256, 384, 512), 2),
)
"""Between two rows the next one counts, and beyond the last one its last width is repeated on further levels."""

ATTENTION_UP_TO: Final = 16 * 16
"""Pixels of the largest level with attention, besides the first level, which has none."""

SMALLEST_LEVEL: Final = 4 * 4
"""Pixels of the smallest level, where the images are not smaller."""

LARGEST_LAST: Final = 32 * 32
"""Pixels of the last level, where a convolution must see far and the middle block attends to all of it."""

FOLLOWING: Final = (
    *("sample_size", "in_channels", "out_channels"),
    *("block_out_channels", "down_block_types", "up_block_types", "layers_per_block"),
)
"""Settings of a network that follow the images where they are None."""


def follows(model: Mapping[str, Any]) -> bool:
    """Whether some of the settings wait for the images."""
    return any(model[name] is None for name in FOLLOWING)


def followed(model: Mapping[str, Any], shape: tuple[int, ...], is_variance_learned: bool) -> dict[str, Any]:
    """The settings of a network with those that are None as the images want them; the others stay.

    Args:
        model: Keyword arguments of :class:`~ddpm_hf.UNet2DModel`, of which those of :data:`FOLLOWING` may be None.
        shape: ``(C, H, W)`` of the images.
        is_variance_learned: The network has two outputs for each channel.

    Raises:
        ValueError: no network of the table fits images of this size; says which sizes have one.
    """
    check_numbers({**model, **{name: 1 for name in FOLLOWING if model[name] is None}})
    found = dict(model)
    channels, height, width = shape
    if found["in_channels"] is None:
        found["in_channels"] = channels
    if found["out_channels"] is None:
        found["out_channels"] = found["in_channels"] * (2 if is_variance_learned else 1)
    if found["sample_size"] is None:
        if max(height, width) > LARGEST_SIDE:
            raise ValueError(f"the images have {height} x {width} pixels, and a side may have {LARGEST_SIDE:,}")
        found["sample_size"] = height if height == width else [height, width]
    sides = found["sample_size"]
    height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
    seen = _seen(height, width, found["patch_size"])
    row = row_of(*seen)
    if found["layers_per_block"] is None:
        found["layers_per_block"] = row.layers_per_block
    given = [found[name] for name in ("block_out_channels", "down_block_types", "up_block_types")]
    levels = next((len(value) for value in given if value is not None), None)
    if found["block_out_channels"] is None:
        levels = _levels(row, *seen, found["patch_size"]) if levels is None else levels
        found["block_out_channels"] = _widths(row, levels)
    down, up = found["down_block_types"], found["up_block_types"]
    if down is None:
        found["down_block_types"] = (
            _mirrored(up, DOWN_OF_UP) if up else _down_blocks(*seen, len(found["block_out_channels"]))
        )
    if up is None:
        found["up_block_types"] = _mirrored(found["down_block_types"], UP_OF_DOWN)
    return found


def row_of(height: int, width: int) -> NetworkSize:
    """The row of the table for images of a size."""
    return next((row for row in SIZES if row.side**2 >= height * width), SIZES[-1])


def _seen(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Height and width of what the network computes on."""
    if height % patch_size or width % patch_size:
        sides = [[_multiple(side, patch_size, is_larger) for side in (height, width)] for is_larger in (False, True)]
        sizes = " or ".join(f"{one} x {other}" for one, other in sides)
        raise ValueError(
            f"the images have {height} x {width} pixels, which patch_size {patch_size} does not divide; give images of "
            f"{sizes} pixels, or another patch_size"
        )
    return height // patch_size, width // patch_size


def _mirrored(blocks: Sequence[str], other_way: Mapping[str, str]) -> list[str]:
    """The blocks of the other way; for a name that is none, which is refused later, the plain one."""
    return [other_way.get(without_old_prefix(name), next(iter(other_way.values()))) for name in reversed(blocks)]


def _widths(row: NetworkSize, levels: int) -> list[int]:
    widths = row.block_out_channels
    return [*widths[:levels], *widths[-1:] * (levels - len(widths))]


def _down_blocks(height: int, width: int, levels: int) -> list[str]:
    has_attention = [i > 0 and (height >> i) * (width >> i) <= ATTENTION_UP_TO for i in range(levels)]
    return ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in has_attention]


def _levels(row: NetworkSize, height: int, width: int, patch_size: int) -> int:
    """As many levels as the row has, or fewer where the sides cannot be halved so often."""
    beyond = math.ceil(math.log2(max(1.0, math.sqrt(height * width) / row.side)))
    most, levels = len(row.block_out_channels) + beyond, 1
    while levels < most and _can_be_halved(height, width, levels):
        levels += 1
    if not _is_small(height, width, levels - 1):
        sizes = dict.fromkeys(_size_with_a_network(height, width, patch_size, is_larger) for is_larger in (False, True))
        raise ValueError(
            f"the images have {height * patch_size} x {width * patch_size} pixels, too many for sides that can be "
            f"halved {_times(levels - 1)}; give images of {' or '.join(sizes)} pixels, or block_out_channels for a "
            "network of your own"
        )
    return levels


def _is_small(height: int, width: int, halvings: int) -> bool:
    return height * width <= (LARGEST_LAST << 2 * halvings if halvings else ATTENTION_UP_TO)


def _can_be_halved(height: int, width: int, times: int) -> bool:
    factor = 1 << times
    return height % factor == width % factor == 0 and height * width >= SMALLEST_LEVEL * factor**2


def _times(number: int) -> str:
    return ("not at all", "only once", "only twice")[number] if number < 3 else f"only {number} times"


def _size_with_a_network(height: int, width: int, patch_size: int, is_larger: bool) -> str:
    """The nearest size, to one side, that can be halved often enough."""
    halvings = 1
    while True:
        one, other = (_multiple(side, 2**halvings, is_larger) for side in (height, width))
        if _is_small(one, other, halvings):
            return f"{one * patch_size} x {other * patch_size}"
        halvings += 1


def _multiple(side: int, factor: int, is_larger: bool) -> int:
    """The nearest multiple, to one side; at least the factor."""
    return max(factor, -(-side // factor) * factor if is_larger else side // factor * factor)
