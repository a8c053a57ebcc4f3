"""How other projects name the weights of Ho et al.'s network, and which UNet2DModel config computes the same.

All of them have the one architecture, so a layout is a table of names: docs/conversion.md prints it. Only attention
needs more than a name: theirs are 1x1 convolutions, ddpm-torch's with query, key and value in one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import torch
from torch import Tensor

from ddpm_hf.models.unet_2d import UNet2DModel

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        name: name of the project, as `--to` takes it.
        signature: a key that only this layout has.
        stem: our modules outside of levels -> theirs.
        resnet: parts of a residual block, ours -> theirs.
        attention: parts of an attention block, ours -> theirs.
        levels: where the blocks of level i are, j being the place within it: `down`, `up` (i counts from the finest
            level in both), `downsample`, `upsample`; and for a level with attention `down_resnet`, `down_attention`,
            `up_resnet`, `up_attention`.
        norm_eps: possible epsilons of the group norms, which the weights do not tell; that of the newest code first.
        has_free_time_embedding: the time embedding may have any width; else it is 4 times the first level's.
    """

    name: str
    signature: str
    stem: Mapping[str, str]
    resnet: Mapping[str, str]
    attention: Mapping[str, str]
    levels: Mapping[str, str]
    norm_eps: tuple[float, ...]
    has_free_time_embedding: bool

    def place(self, kind: str, i: int, j: int) -> str:
        """Where block j of level i is; see `levels`."""
        return self.levels[kind].format(i=i, j=j)


DDPM_TORCH: Final = Layout(
    name="ddpm-torch",
    signature="in_conv.weight",
    stem={
        "conv_in": "in_conv",
        "time_embedding.linear_1": "embed.0",
        "time_embedding.linear_2": "embed.2",
        "mid_block.resnets.0": "middle.0",
        "mid_block.attentions.0": "middle.1",
        "mid_block.resnets.1": "middle.2",
        "conv_norm_out": "out_conv.0",
        "conv_out": "out_conv.2",
    },
    resnet={
        "norm1": "norm1",
        "conv1": "conv1",
        "time_emb_proj": "fc",
        "norm2": "norm2",
        "conv2": "conv2",
        "conv_shortcut": "skip",
    },
    attention={"group_norm": "norm", "to_qkv": "project_in", "to_out.0": "project_out"},
    levels={
        "down": "downsamples.level_{i}.{j}",
        "down_resnet": "downsamples.level_{i}.{j}.0",
        "down_attention": "downsamples.level_{i}.{j}.1",
        "downsample": "downsamples.level_{i}.{j}.1",
        "up": "upsamples.level_{i}.{j}",
        "up_resnet": "upsamples.level_{i}.{j}.0",
        "up_attention": "upsamples.level_{i}.{j}.1",
        "upsample": "upsamples.level_{i}.{j}.1",
    },
    norm_eps=(1e-6, 1e-5),
    has_free_time_embedding=True,
)

ERMONGROUP_DDIM: Final = Layout(
    name="ermongroup-ddim",
    signature="temb.dense.0.weight",
    stem={
        "conv_in": "conv_in",
        "time_embedding.linear_1": "temb.dense.0",
        "time_embedding.linear_2": "temb.dense.1",
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.attentions.0": "mid.attn_1",
        "mid_block.resnets.1": "mid.block_2",
        "conv_norm_out": "norm_out",
        "conv_out": "conv_out",
    },
    resnet={
        "norm1": "norm1",
        "conv1": "conv1",
        "time_emb_proj": "temb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "conv_shortcut": "nin_shortcut",
    },
    attention={"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    levels={
        "down": "down.{i}.block.{j}",
        "down_resnet": "down.{i}.block.{j}",
        "down_attention": "down.{i}.attn.{j}",
        "downsample": "down.{i}.downsample.conv",
        "up": "up.{i}.block.{j}",
        "up_resnet": "up.{i}.block.{j}",
        "up_attention": "up.{i}.attn.{j}",
        "upsample": "up.{i}.upsample.conv",
    },
    norm_eps=(1e-6,),
    has_free_time_embedding=False,
)

LAYOUTS: Final = {layout.name: layout for layout in (DDPM_TORCH, ERMONGROUP_DDIM)}

LIKE_HO: Final[dict[str, Any]] = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
    "norm_num_groups": 32,
}
"""The UNet2DModel settings that compute what all layouts do, beside what the shapes of the weights tell.

The strided convolution pads to the right and below, as TensorFlow's SAME does on even sizes; the time embedding has
its sines first and reaches 1/10000 exactly.
"""
_MUST_BE: Final[dict[str, Any]] = {
    **LIKE_HO,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None, 32),
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}


def layout_of(keys: Sequence[str]) -> Layout:
    """The layout that a checkpoint's keys are of.

    Raises:
        ValueError: they are of none, with the reason where the project is known.
    """
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
    for key, value in _MUST_BE.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if config[key] not in allowed and not (key == "attention_head_dim" and _has_one_head(config)):
            wrong.append(f"{key}={config[key]!r}, where it has {' or '.join(map(repr, allowed))}")
    if config.norm_eps not in layout.norm_eps:
        wrong.append(f"norm_eps={config.norm_eps}, where it has {' or '.join(map(str, layout.norm_eps))}")
    channels = config.block_out_channels
    if any(width % channels[0] for width in channels):
        wrong.append(f"block_out_channels={list(channels)}, where it has multiples of the first")
    mirrored = [kind.replace("Down", "Up") for kind in reversed(config.down_block_types)]
    if list(config.up_block_types) != mirrored:
        wrong.append("attention at other levels on the way up than on the way down")
    if not layout.has_free_time_embedding and config.time_embedding_dim not in (None, 4 * channels[0]):
        wrong.append(f"time_embedding_dim={config.time_embedding_dim}, where it has {4 * channels[0]}")
    if wrong:
        raise ValueError(f"{layout.name} has no such network: {'; '.join(wrong)}")


def to_ours(layout: Layout, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """A checkpoint's weights under our names, after every key and shape has been compared with the network's.

    Raises:
        ValueError: keys are missing, unknown or of another shape; the first of each are named.
    """
    unet = unet_without_memory(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in to_theirs(layout, unet.state_dict(), unet.config).items()}
    missing = [key for key in shapes if key not in weights]
    unknown = [key for key in weights if key not in shapes]
    misshapen = [key for key in shapes if key in weights and tuple(weights[key].shape) != shapes[key]]
    found = {"missing": missing, "unknown": unknown}
    problems = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in found.items() if keys]
    if misshapen:
        key = misshapen[0]
        problems.append(f"{len(misshapen)} of another shape ({key} is {tuple(weights[key].shape)}, not {shapes[key]})")
    if problems:
        raise ValueError(f"not a whole {layout.name} UNet of {len(shapes)} keys: {', '.join(problems)}")

    ours: Weights = {}
    for name, key, is_convolution in _names(layout, unet.config):
        tensor = weights[key].flatten(1) if is_convolution and weights[key].ndim == 4 else weights[key]
        if ".to_qkv." in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                ours[name.replace("to_qkv", f"to_{part}")] = chunk.clone()
        else:
            ours[name] = tensor
    return ours


def to_theirs(layout: Layout, weights: Mapping[str, Tensor], config: Any) -> Weights:
    """The reverse of :func:`to_ours`; `config` is that of the UNet that holds the weights."""
    theirs: Weights = {}
    for name, key, is_convolution in _names(layout, config):
        if ".to_qkv." in name:
            tensor = torch.cat([weights[name.replace("to_qkv", f"to_{part}")] for part in "qkv"])
        else:
            tensor = weights[name]
        theirs[key] = tensor[:, :, None, None] if is_convolution and tensor.ndim == 2 else tensor
    return theirs


def _names(layout: Layout, config: Any) -> Iterator[tuple[str, str, bool]]:
    """(our parameter, their parameter, it is an attention's projection), for every parameter of the network."""
    for ours, theirs, parts in _modules(layout, config):
        is_attention = parts is layout.attention
        for our_part, their_part in parts.items():
            is_projection = is_attention and our_part != "group_norm"
            for kind in ("weight", "bias"):
                yield _joined(ours, our_part, kind), _joined(theirs, their_part, kind), is_projection


def _modules(layout: Layout, config: Any) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """(our module, theirs, the names of its parts, or one empty name for a module without parts)."""
    single = {"": ""}
    plain = {ours: theirs for ours, theirs in layout.resnet.items() if ours != "conv_shortcut"}
    for ours, theirs in layout.stem.items():
        parts = plain if ".resnets." in ours else layout.attention if ".attentions." in ours else single
        yield ours, theirs, parts

    channels, layers = list(config.block_out_channels), config.layers_per_block
    levels = len(channels)
    for i in range(levels):
        has_attention = config.down_block_types[i].startswith("Attn")
        down, up = f"down_blocks.{i}", f"up_blocks.{levels - 1 - i}"
        for way, block, blocks in (("down", down, layers), ("up", up, layers + 1)):
            for j in range(blocks):
                # On the way up a block's input is wider than its output, by the skip connection.
                keeps_width = way == "down" and (j > 0 or channels[i] == channels[max(i - 1, 0)])
                resnet = layout.place(f"{way}_resnet" if has_attention else way, i, j)
                yield f"{block}.resnets.{j}", resnet, plain if keeps_width else layout.resnet
                if has_attention:
                    yield f"{block}.attentions.{j}", layout.place(f"{way}_attention", i, j), layout.attention
        if i < levels - 1:
            yield f"{down}.downsamplers.0.conv", layout.place("downsample", i, layers), single
        if i > 0:
            yield f"{up}.upsamplers.0.conv", layout.place("upsample", i, layers + 1), single


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _has_one_head(config: Any) -> bool:
    """Whether heads of attention_head_dim channels come to one head wherever there is attention."""
    kinds = zip(config.down_block_types, config.block_out_channels, strict=True)
    widths = {width for kind, width in kinds if kind.startswith("Attn")} | {config.block_out_channels[-1]}
    return widths == {config.attention_head_dim}


def unet_without_memory(config: Mapping[str, Any]) -> UNet2DModel:
    """The network of a config, to be asked for its shapes or given weights by assignment."""
    with torch.device("meta"):
        unet: UNet2DModel = UNet2DModel.from_config(config)
    return unet


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
