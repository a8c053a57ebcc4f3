"""What a UNet2DModel's config may say: checked in one sentence each, before anything is built of it."""

from collections.abc import Sequence
from typing import Any, Final

from ddpm_hf.models.unet_2d_blocks import (
    ACTIVATIONS,
    AttnDownBlock2D,
    AttnUpBlock2D,
    DownBlock2D,
    UpBlock2D,
)

DOWN_BLOCKS: Final = {"DownBlock2D": DownBlock2D, "AttnDownBlock2D": AttnDownBlock2D}
UP_BLOCKS: Final = {"UpBlock2D": UpBlock2D, "AttnUpBlock2D": AttnUpBlock2D}
MID_BLOCKS: Final = ("UNetMidBlock2D", None)
TIME_EMBEDDINGS: Final = ("positional", "fourier", "learned")
CLASS_EMBEDDINGS: Final = (None, "timestep", "identity")
TIME_SCALE_SHIFTS: Final = ("default", "scale_shift")
SAMPLINGS: Final = ("conv", "resnet")


def check_config(config: Any) -> None:
    """Say in one sentence what of a config is unknown or does not fit."""
    known: dict[str, Sequence[Any]] = {
        "mid_block_type": MID_BLOCKS,
        "time_embedding_type": TIME_EMBEDDINGS,
        "class_embed_type": CLASS_EMBEDDINGS,
        "resnet_time_scale_shift": TIME_SCALE_SHIFTS,
        "downsample_type": SAMPLINGS,
        "upsample_type": SAMPLINGS,
        "downsample_padding": (0, 1),
    }
    for key, values in known.items():
        _check_choice(key, config[key], values)
    _check_choice("act_fn", config.act_fn.lower(), tuple(ACTIVATIONS))
    for block_type in config.down_block_types:
        _check_choice("down_block_types", block_type, tuple(DOWN_BLOCKS))
    for block_type in config.up_block_types:
        _check_choice("up_block_types", block_type, tuple(UP_BLOCKS))

    if config.patch_size < 1:
        raise ValueError(f"patch_size={config.patch_size} must be 1 or more.")
    levels = {key: len(config[key]) for key in ("down_block_types", "up_block_types", "block_out_channels")}
    if len(set(levels.values())) > 1 or 0 in levels.values():
        raise ValueError(f"{levels} must be of one length, one entry per level.")
    for channels in config.block_out_channels:
        _check_groups(channels, "norm_num_groups", config.norm_num_groups)
    blocks = [*zip(config.down_block_types, config.block_out_channels, strict=True)]
    blocks += zip(config.up_block_types, reversed(config.block_out_channels), strict=True)
    with_attention = [channels for block_type, channels in blocks if block_type.startswith("Attn")]
    if config.mid_block_type is not None and config.add_attention:
        with_attention.append(config.block_out_channels[-1])
        if config.attn_norm_num_groups is not None:
            _check_groups(config.block_out_channels[-1], "attn_norm_num_groups", config.attn_norm_num_groups)
    widest_head = min(with_attention, default=config.attention_head_dim)
    if config.attention_head_dim is not None and not 1 <= config.attention_head_dim <= widest_head:
        raise ValueError(
            f"attention_head_dim={config.attention_head_dim} does not fit into {widest_head} of block_out_channels; "
            f"use 1 .. {widest_head}, or None for one head."
        )
    if config.time_embedding_type == "learned" and config.num_train_timesteps is None:
        raise ValueError("time_embedding_type='learned' needs num_train_timesteps.")


def _check_groups(channels: int, key: str, groups: int | None) -> None:
    if not groups or channels % groups:
        raise ValueError(f"block_out_channels has {channels}, not a multiple of {key}={groups}.")


def _check_choice(key: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ValueError(f"{key}={value!r} is not known; use one of {', '.join(map(str, known))}.")
