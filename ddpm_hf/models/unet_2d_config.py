"""What a UNet2DModel's config may say: checked in one sentence each, before anything is built of it or torch is loaded.

A block or activation is one row of its table here, with its place as "module:name" for `pkgutil.resolve_name`.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

DOWN_BLOCKS: Final = {
    "DownBlock2D": "ddpm_hf.models.unet_2d_blocks:DownBlock2D",
    "AttnDownBlock2D": "ddpm_hf.models.unet_2d_blocks:AttnDownBlock2D",
    "ResnetDownsampleBlock2D": "ddpm_hf.models.unet_2d_blocks:ResnetDownsampleBlock2D",
}
UP_BLOCKS: Final = {
    "UpBlock2D": "ddpm_hf.models.unet_2d_blocks:UpBlock2D",
    "AttnUpBlock2D": "ddpm_hf.models.unet_2d_blocks:AttnUpBlock2D",
    "ResnetUpsampleBlock2D": "ddpm_hf.models.unet_2d_blocks:ResnetUpsampleBlock2D",
}
UP_OF_DOWN: Final = dict(zip(DOWN_BLOCKS, UP_BLOCKS, strict=True))
DOWN_OF_UP: Final = dict(zip(UP_BLOCKS, DOWN_BLOCKS, strict=True))
"""Which block on one way goes with which on the other."""

OURS_ONLY: Final[dict[str, Any]] = {"patch_size": 1, "time_proj_dim": None}
"""Keys that diffusers lacks, and the values with which a network is one of diffusers'; then its config is without."""

ACTIVATIONS: Final = {
    "silu": "torch.nn:SiLU",
    "swish": "torch.nn:SiLU",
    "mish": "torch.nn:Mish",
    "gelu": "torch.nn:GELU",
    "relu": "torch.nn:ReLU",
}
MID_BLOCKS: Final = ("UNetMidBlock2D", None)
TIME_EMBEDDINGS: Final = ("positional", "fourier", "learned")
CLASS_EMBEDDINGS: Final = (None, "timestep", "identity")
TIME_SCALE_SHIFTS: Final = ("default", "scale_shift")
SAMPLINGS: Final = ("conv", "resnet")

LARGEST_SIDE: Final = 16_384
MOST_CHANNELS: Final = 65_536
_MOST: Final = {
    "in_channels": 4_096,
    "out_channels": 4_096,
    "layers_per_block": 100,
    "patch_size": 256,
    "time_embedding_dim": MOST_CHANNELS,
    "time_proj_dim": MOST_CHANNELS,
    "num_class_embeds": 10_000_000,
    "num_train_timesteps": 1_000_000,
}
"""Far above what any network has, and far below what no memory holds."""


def check_config(config: Mapping[str, Any]) -> None:
    """Say in one sentence, which begins with the key, what of a config is unknown or does not fit.

    Raises:
        ValueError: it cannot be built, or its output would not be finite.
    """
    _check_names(config)
    check_numbers(config)
    levels = {key: len(config[key]) for key in ("down_block_types", "up_block_types", "block_out_channels")}
    if len(set(levels.values())) > 1 or 0 in levels.values():
        raise ValueError(
            f"block_out_channels has {levels['block_out_channels']} levels, down_block_types "
            f"{levels['down_block_types']} and up_block_types {levels['up_block_types']}; give one entry per level."
        )
    _check_channels(config)
    if config["time_embedding_type"] == "learned" and config["num_train_timesteps"] is None:
        raise ValueError("time_embedding_type='learned' needs num_train_timesteps.")
    waves, shift = config["time_proj_dim"], config["freq_shift"]
    origin = f"time_proj_dim={waves}"
    if waves is None:
        waves = config["block_out_channels"][0]
        origin = f"block_out_channels that begin with {waves}"
    if config["time_embedding_type"] == "positional" and shift >= waves // 2:
        raise ValueError(f"freq_shift={shift} divides by zero or less with {origin}; make it less than {waves // 2}.")


def _check_names(config: Mapping[str, Any]) -> None:
    known: dict[str, Collection[Any]] = {
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
    _check_choice("act_fn", config["act_fn"].lower(), ACTIVATIONS)
    for block_type in config["down_block_types"]:
        _check_choice("down_block_types", without_old_prefix(block_type), DOWN_BLOCKS)
    for block_type in config["up_block_types"]:
        _check_choice("up_block_types", without_old_prefix(block_type), UP_BLOCKS)


def check_numbers(config: Mapping[str, Any]) -> None:
    """The part of :func:`check_config` that looks at one number at a time."""
    for key, most in _MOST.items():
        may_be_none = key in ("time_embedding_dim", "time_proj_dim", "num_class_embeds", "num_train_timesteps")
        expected = f"1 or more, and at most {most:,}{', or None' if may_be_none else ''}"
        _check((may_be_none and config[key] is None) or 1 <= (config[key] or 0) <= most, key, config[key], expected)
    size = config["sample_size"]
    sides = size if isinstance(size, list | tuple) else (size,)
    fits = size is None or all(1 <= side <= LARGEST_SIDE for side in sides)
    _check(fits, "sample_size", size, f"a side, or height and width, of 1 to {LARGEST_SIDE:,} pixels")
    scale = config["mid_block_scale_factor"]
    _check(1e-4 <= scale <= 1e4, "mid_block_scale_factor", scale, "from 0.0001 to 10,000, as it divides")
    _check(0 <= config["dropout"] < 1, "dropout", config["dropout"], "at least 0 and below 1")
    _check(1e-12 <= config["norm_eps"] < 1, "norm_eps", config["norm_eps"], "above 0 (from 1e-12) and below 1")


def _check_channels(config: Mapping[str, Any]) -> None:
    """Groups and heads divide the channels of their levels."""
    channels = config["block_out_channels"]
    for number in channels:
        expected = f"1 or more, and at most {MOST_CHANNELS:,}, on each level"
        _check(1 <= number <= MOST_CHANNELS, "block_out_channels", list(channels), expected)
        _check_groups(number, "norm_num_groups", config["norm_num_groups"])
    has_attention = levels_with_attention(config)
    if has_attention[-1] and config["mid_block_type"] is not None and config["attn_norm_num_groups"] is not None:
        _check_groups(channels[-1], "attn_norm_num_groups", config["attn_norm_num_groups"])
    given = config["attention_head_dim"]
    if isinstance(given, list | tuple) and len(given) != len(channels):
        raise ValueError(
            f"attention_head_dim has {len(given)} entries for {len(channels)} levels; give a number, or one per level."
        )
    levels = zip(channels, heads_per_level(config), has_attention, strict=True)
    for widest, head, attends in sorted(levels):  # the narrowest first
        if head is not None and attends and not 1 <= head <= widest:
            raise ValueError(
                f"attention_head_dim={head} does not fit into {widest} of block_out_channels; use 1 .. {widest}, or "
                "None for one head."
            )


def heads_per_level(config: Mapping[str, Any]) -> list[int | None]:
    """Channels of an attention head on each level; None for one head."""
    given = config["attention_head_dim"]
    return list(given) if isinstance(given, list | tuple) else [given] * len(config["block_out_channels"])


def levels_with_attention(config: Mapping[str, Any]) -> list[bool]:
    """Which levels have attention in one of their blocks, the middle one included."""
    ways = zip(config["down_block_types"], reversed(config["up_block_types"]), strict=True)
    found = [any(without_old_prefix(block).startswith("Attn") for block in blocks) for blocks in ways]
    found[-1] |= config["mid_block_type"] is not None and config["add_attention"]
    return found


def is_diffusers_network(config: Mapping[str, Any]) -> bool:
    """Whether plain diffusers can say this network in its config."""
    is_known = all(config.get(key, value) == value for key, value in OURS_ONLY.items())
    return is_known and not isinstance(config["attention_head_dim"], list | tuple)


def _check_groups(channels: int, key: str, groups: int | None) -> None:
    if not groups or groups < 0 or channels % groups:
        raise ValueError(f"block_out_channels has {channels}, not a multiple of {key}={groups}.")


def _check(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key}={value!r} must be {expected}.")


def _check_choice(key: str, value: Any, known: Collection[Any]) -> None:
    if value not in known:
        raise ValueError(f"{key}={value!r} is not known; use one of {', '.join(map(str, known))}.")


def without_old_prefix(block_type: Any) -> Any:
    """A block's present name: configs of diffusers before 0.1 say UNetResDownBlock2D."""
    return block_type.removeprefix("UNetRes") if isinstance(block_type, str) else block_type
