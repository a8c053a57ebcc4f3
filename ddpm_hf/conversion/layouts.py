"""Weights of other projects under our names, and back, and which UNet2DModel config computes the same.

Ports of Ho et al.'s code have the one architecture, and OpenAI's one other, so a layout is a table of names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddpm_hf.conversion.layout_tables import GUIDED_DIFFUSION, LAYOUTS, LIKE_HO, Layout
from ddpm_hf.models.embeddings import SinusoidalEmbedding
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.models.unet_2d_config import OURS_ONLY, heads_per_level, levels_with_attention

Weights = dict[str, Tensor]

WHY_NOT_EDM: Final = (
    "its networks are others than UNet2DModel, preconditioned for noise levels and not for timesteps, so it cannot "
    "be converted"
)


def layout_of(weights: Mapping[str, Tensor]) -> Layout:
    """The layout that a checkpoint is of.

    Raises:
        ValueError: it is of none, with the reason where the project is known.
    """
    keys = list(weights)
    if weights.get(GUIDED_DIFFUSION.signature, torch.empty(0)).shape[1:2] == (6,):
        raise ValueError(
            "an upsampler of OpenAI's, which sees a small image beside the noisy one, and there is no pipeline for it"
        )
    for layout in LAYOUTS.values():
        if layout.signature in keys:
            return layout
    if any(key.startswith("_model.") for key in keys):
        raise ValueError(
            "a ddpm-torch network with block_size above 1 (its keys begin with _model.), which works on images with "
            "pixels folded into channels, as UNet2DModel does not"
        )
    if any(key.removeprefix("model.").removeprefix("ema_model.model.") == "init_conv.weight" for key in keys):
        raise ValueError(
            "a network of denoising-diffusion-pytorch (lucidrains), which no UNet2DModel computes: it has linear "
            "attention, channel norms, a 7x7 first convolution and GELU in the time embedding"
        )
    if any(re.match(r"(model\.|unet\.)?enc\.\d+x\d+_", key) for key in keys):
        raise ValueError(f"a network of NVIDIA's EDM: {WHY_NOT_EDM}")
    if "time_embedding.linear_1.weight" in keys:
        raise ValueError("the weights of a diffusers UNet without its config; give the folder that holds both")
    raise ValueError(f"of no layout that is known ({', '.join(LAYOUTS)}); its first keys are {_some(keys)}")


def unet_config(layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The UNet2DModel config that the names and shapes of a checkpoint tell, without sample_size and dropout.

    Raises:
        ValueError: a key without which the architecture cannot be told is missing.
    """

    def shape(key: str) -> tuple[int, int]:
        """The first two sizes of a layer's weight."""
        if key not in weights:
            raise ValueError(f"not a whole {layout.name} UNet: 1 missing key ({key})")
        if weights[key].ndim < 2:
            raise ValueError(f"not a {layout.name} UNet: {key} is {tuple(weights[key].shape)}, no layer's weight")
        return weights[key].shape[0], weights[key].shape[1]

    def block(i: int, j: int) -> str | None:
        """The first convolution of a residual block on the way down, if there is such a block."""
        names = [f"{layout.place(kind, i, j)}.conv1.weight" for kind in ("down", "down_resnet")]
        return next((name for name in names if name in weights), None)

    levels = next(i for i in count() if block(i, 0) is None)
    layers = next(j for j in count() if block(0, j) is None)
    if levels == 0:
        raise ValueError(f"not a whole {layout.name} UNet: no residual block in level 0")
    channels = [shape(block(i, 0) or "")[0] for i in range(levels)]
    first_width, in_channels = shape(f"{layout.stem['conv_in']}.weight")
    if first_width != channels[0]:
        raise ValueError(
            f"a network whose first level has {channels[0]} channels and whose first convolution {first_width}; in a "
            "UNet2DModel they are equal (the first multiplier is 1)"
        )
    if levels > 1 and not any(f"{layout.place('downsample', i, layers)}.weight" in weights for i in range(levels)):
        raise ValueError("a network that changes resolution without convolutions, which no UNet2DModel does")
    norm = layout.attention["group_norm"]
    has_attention = [f"{layout.place('down_attention', i, 0)}.{norm}.weight" in weights for i in range(levels)]
    kinds = ["Attn" if has else "" for has in has_attention]
    time_channels = shape(f"{layout.stem['time_embedding.linear_1']}.weight")[0]
    return {
        "in_channels": in_channels,
        "out_channels": shape(f"{layout.stem['conv_out']}.weight")[0],
        "block_out_channels": channels,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "layers_per_block": layers,
        "time_embedding_dim": None if time_channels == 4 * channels[0] else time_channels,
        "norm_eps": layout.norm_eps[0],
        **LIKE_HO,
    }


def check_expressible(layout: Layout, config: Any) -> None:
    """Refuse a UNet2DModel that the project's network does not compute.

    Raises:
        ValueError: with the settings that it lacks.
    """
    wrong = []
    levels = zip(config.block_out_channels, heads_per_level(config), levels_with_attention(config), strict=True)
    has_one_head = all(head in (None, width) for width, head, attends in levels if attends)
    for key, value in layout.must_be.items():
        found = config.get(key, OURS_ONLY.get(key))
        allowed = value if isinstance(value, tuple) else (value,)
        if found not in allowed and not (key == "attention_head_dim" and has_one_head):
            wrong.append(f"{key}={found!r}, where it has {' or '.join(map(repr, allowed))}")
    if config.norm_eps not in layout.norm_eps:
        wrong.append(f"norm_eps={config.norm_eps}, where it has {' or '.join(map(str, layout.norm_eps))}")
    channels = config.block_out_channels
    waves = config.get("time_proj_dim") or channels[0]
    mirrored = [kind.replace("Down", "Up") for kind in reversed(config.down_block_types)]
    if list(config.up_block_types) != mirrored:
        wrong.append("blocks of other kinds on the way up than on the way down")
    if "downsample_residual" not in layout.levels and any(kind.startswith("Resnet") for kind in mirrored):
        wrong.append("residual blocks that change the resolution")
    if not layout.needs_recipe and any(width % channels[0] for width in channels):
        wrong.append(f"block_out_channels={list(channels)}, where it has multiples of the first")
    if not layout.has_free_time_embedding and (config.time_embedding_dim or 4 * channels[0]) != 4 * waves:
        wrong.append(f"time_embedding_dim={config.time_embedding_dim}, where it has {4 * waves}")
    if wrong:
        raise ValueError(f"{layout.name} has no such network: {'; '.join(wrong)}")


def heads_by_level(config: Any) -> list[int | None]:
    """How many heads the attention of each level has, as many as fit; None where there is none."""
    levels = zip(config.block_out_channels, heads_per_level(config), levels_with_attention(config), strict=True)
    return [width // (head or width) if attends else None for width, head, attends in levels]


def to_ours(layout: Layout, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """A checkpoint's weights under our names, after every key and shape has been compared with the network's.

    Raises:
        ValueError: keys are missing, unknown or of another shape; the first of each are named.
    """
    unet = unet_without_memory(config)
    of_recipe = " that the recipe describes" if layout.needs_recipe else ""
    check_whole(weights, to_theirs(layout, unet.state_dict(), unet.config), f"{layout.name} UNet", of_recipe)
    ours = under_our_names(layout, names_of(layout, unet.config), weights)
    if unet.config.time_embedding_type == "learned":
        ours["time_proj.weight"] = waves_of_rescaled_times(unet.config).to(next(iter(ours.values())))
    return ours


def to_theirs(layout: Layout, weights: Mapping[str, Tensor], config: Any) -> Weights:
    """The reverse of :func:`to_ours`; `config` is that of the UNet that holds the weights.

    Raises:
        ValueError: its table of embedded timesteps is not that of rescaled ones.
    """
    if config.time_embedding_type == "learned" and not weights["time_proj.weight"].is_meta:
        table = weights["time_proj.weight"]
        if not torch.equal(table, waves_of_rescaled_times(config).to(table)):
            raise ValueError(
                f"{layout.name} has no such network: time_proj.weight is learned, where it has the sines and cosines "
                "of rescaled timesteps"
            )
    return under_their_names(layout, names_of(layout, config), weights)


def check_whole(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: str, of_recipe: str) -> None:
    """Compare the keys and shapes of a checkpoint with those of a network under the same names.

    Raises:
        ValueError: some are missing, unknown or of another shape; the first of each are named.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in expected.items()}
    missing = [key for key in shapes if key not in weights]
    unknown = [key for key in weights if key not in shapes]
    misshapen = [key for key in shapes if key in weights and tuple(weights[key].shape) != shapes[key]]
    found = {"missing": missing, "unknown": unknown}
    problems = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in found.items() if keys]
    if misshapen:
        key = misshapen[0]
        problems.append(f"{len(misshapen)} of another shape ({key} is {tuple(weights[key].shape)}, not {shapes[key]})")
    if problems:
        raise ValueError(f"not a whole {kind} of {len(shapes)} keys{of_recipe}: {', '.join(problems)}")


def under_our_names(layout: Layout, names: Iterable["Name"], weights: Mapping[str, Tensor]) -> Weights:
    """Weights of a checkpoint that has been compared."""
    ours: Weights = {}
    for name, key, heads in names:
        tensor = weights[key].flatten(1) if heads and weights[key].ndim == 2 + layout.projection_axes else weights[key]
        if ".to_qkv." in name:
            # (heads, 3, channels of a head, ...)
            stacked = tensor.reshape(heads if layout.is_stacked_by_head else 1, 3, -1, *tensor.shape[1:])
            for part, rows in zip("qkv", stacked.unbind(1), strict=True):
                ours[name.replace("to_qkv", f"to_{part}")] = rows.flatten(0, 1).clone()
        else:
            ours[name] = tensor
    return ours


def under_their_names(layout: Layout, names: Iterable["Name"], weights: Mapping[str, Tensor]) -> Weights:
    """The reverse of :func:`under_our_names`."""
    theirs: Weights = {}
    for name, key, heads in names:
        if ".to_qkv." in name:
            groups = heads if layout.is_stacked_by_head else 1
            parts = [weights[name.replace("to_qkv", f"to_{part}")] for part in "qkv"]
            stacked = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
            tensor = torch.stack(stacked, dim=1).flatten(0, 2)
        else:
            tensor = weights[name]
        theirs[key] = tensor[(...,) + (None,) * layout.projection_axes] if heads and tensor.ndim == 2 else tensor
    return theirs


def waves_of_rescaled_times(config: Any) -> Tensor:
    """What OpenAI's networks see of each of T timesteps where T is not 1000: the waves of t 1000 / T, (T, channels).

    diffusers embeds t itself, but for `time_embedding_type` learned it looks t up in a table, which can be this one.
    """
    steps, channels = config.num_train_timesteps, config.get("time_proj_dim") or config.block_out_channels[0]
    embedding = SinusoidalEmbedding(channels, is_cosine_first=True, frequency_shift=0)
    times: Tensor = torch.arange(steps, dtype=torch.float32, device="cpu") * (1000 / steps)
    table: Tensor = embedding(times)
    return table


class Name(NamedTuple):
    """A parameter here and there; heads of the attention whose projection it is, else 0."""

    ours: str
    theirs: str
    heads: int


def names_of(layout: Layout, config: Any) -> Iterator[Name]:
    """Every parameter of the network, but a table of timesteps."""
    for ours, theirs, parts, heads in _modules(layout, config):
        for our_part, their_part in parts.items():
            is_projection = parts is layout.attention and our_part != "group_norm"
            for kind in ("weight",) if ours == "class_embedding" else ("weight", "bias"):
                found = _joined(ours, our_part, kind), _joined(theirs, their_part, kind)
                yield Name(*found, heads if is_projection else 0)


def _modules(layout: Layout, config: Any) -> Iterator[tuple[str, str, Mapping[str, str], int]]:
    """(our module, theirs, the names of its parts, or one empty name for a module without parts, heads)."""
    single = {"": ""}
    plain = {ours: theirs for ours, theirs in layout.resnet.items() if ours != "conv_shortcut"}
    heads = [number or 0 for number in heads_by_level(config)]
    for ours, theirs in layout.stem.items():
        if ours == "class_embedding" and config.num_class_embeds is None:
            continue
        parts = plain if ".resnets." in ours else layout.attention if ".attentions." in ours else single
        yield ours, theirs, parts, heads[-1]

    channels, layers = list(config.block_out_channels), config.layers_per_block
    levels = len(channels)
    for i in range(levels):
        has_attention = config.down_block_types[i].startswith("Attn")
        down, up = f"down_blocks.{i}", f"up_blocks.{levels - 1 - i}"
        first = {"down": 1 + i * (layers + 1), "up": (levels - 1 - i) * (layers + 1)}
        for way, block, blocks in (("down", down, layers), ("up", up, layers + 1)):
            for j in range(blocks):
                # On the way up a block's input is wider than its output, by the skip connection.
                keeps_width = way == "down" and (j > 0 or channels[i] == channels[max(i - 1, 0)])
                at = (i, j, first[way] + j)
                resnet = layout.place(f"{way}_resnet" if has_attention else way, *at)
                yield f"{block}.resnets.{j}", resnet, plain if keeps_width else layout.resnet, 0
                if has_attention:
                    attention = layout.place(f"{way}_attention", *at)
                    yield f"{block}.attentions.{j}", attention, layout.attention, heads[i]
        for way, block, is_there in (("down", f"{down}.down", i < levels - 1), ("up", f"{up}.up", i > 0)):
            if is_there:
                place = {"i": i, "j": layers + (way == "up"), "n": first[way] + layers, "k": 1 + has_attention}
                if samples_by_residual_blocks(config, i, way):
                    yield f"{block}samplers.0", layout.place(f"{way}sample_residual", **place), plain, 0
                else:
                    yield f"{block}samplers.0.conv", layout.place(f"{way}sample", **place), single, 0


def samples_by_residual_blocks(config: Any, level: int, way: str) -> bool:
    """Whether a level's blocks on the way down or up change the resolution by a residual block."""
    kind: str = config.down_block_types[level]
    return kind.startswith("Resnet") or (kind.startswith("Attn") and bool(config[f"{way}sample_type"] == "resnet"))


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def unet_without_memory(config: Mapping[str, Any]) -> UNet2DModel:
    """The network of a config, to be asked for its shapes or given weights by assignment."""
    with torch.device("meta"):
        unet: UNet2DModel = UNet2DModel.from_config(config)
    return unet


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
