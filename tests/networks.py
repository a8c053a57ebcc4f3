"""The smallest network that has every kind of block: two levels, one of them with attention."""

from typing import Any

TWO_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
