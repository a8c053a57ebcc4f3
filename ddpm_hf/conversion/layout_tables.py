"""How other projects name the weights of their networks: docs/conversion.md prints these tables.

Only attention needs more than a name: theirs are convolutions of one pixel, most with query, key and value in one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ddpm_hf.models.unet_2d_config import OURS_ONLY


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
            level in both), `downsample`, `upsample`; for a level with attention `down_resnet`, `down_attention`,
            `up_resnet`, `up_attention`; and where a residual block changes the resolution, `downsample_residual`,
            `upsample_residual`. n is the block's place on its whole way, k how many modules of block n come before.
        norm_eps: possible epsilons of the group norms, which the weights do not tell; that of the newest code first.
        must_be: UNet2DModel settings that its network has, with one value or several that are possible.
        has_free_time_embedding: the time embedding may have any width; else it is 4 times the first level's.
        needs_recipe: the weights do not tell the network, as they do not say how many heads an attention has.
        projection_axes: axes, all of size 1, that the weights of its attention's projections have beyond ours.
        is_stacked_by_head: query, key and value of the first head come first, then those of the second; else all of
            the query come first.
    """

    name: str
    signature: str
    stem: Mapping[str, str]
    resnet: Mapping[str, str]
    attention: Mapping[str, str]
    levels: Mapping[str, str]
    norm_eps: tuple[float, ...]
    must_be: Mapping[str, Any]
    has_free_time_embedding: bool = False
    needs_recipe: bool = False
    projection_axes: int = 2
    is_stacked_by_head: bool = False

    def place(self, kind: str, i: int, j: int, n: int = 0, k: int = 0) -> str:
        """Where block j of level i is; see `levels`."""
        return self.levels[kind].format(i=i, j=j, n=n, k=k)


LIKE_HO: Final[dict[str, Any]] = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
    "norm_num_groups": 32,
}
"""The UNet2DModel settings that compute what ports of Ho et al.'s code do, beside what the shapes of the weights tell.

The strided convolution pads to the right and below, as TensorFlow's SAME does on even sizes; the time embedding has
its sines first and reaches 1/10000 exactly.
"""
_HOS_NETWORK: Final[dict[str, Any]] = {
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
    **OURS_ONLY,
}

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
    must_be=_HOS_NETWORK,
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
    must_be=_HOS_NETWORK,
)

LIKE_OPENAI: Final[dict[str, Any]] = {
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "norm_eps": 1e-5,
}
"""The UNet2DModel settings that compute what OpenAI's networks do, beside what their flags say."""

GUIDED_DIFFUSION: Final = Layout(
    name="guided-diffusion",
    signature="input_blocks.0.0.weight",
    stem={
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    },
    resnet={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    attention={"group_norm": "norm", "to_qkv": "qkv", "to_out.0": "proj_out"},
    levels={
        "down": "input_blocks.{n}.0",
        "down_resnet": "input_blocks.{n}.0",
        "down_attention": "input_blocks.{n}.1",
        "downsample": "input_blocks.{n}.0.op",
        "downsample_residual": "input_blocks.{n}.0",
        "up": "output_blocks.{n}.0",
        "up_resnet": "output_blocks.{n}.0",
        "up_attention": "output_blocks.{n}.1",
        "upsample": "output_blocks.{n}.{k}.conv",
        "upsample_residual": "output_blocks.{n}.{k}",
    },
    norm_eps=(1e-5,),
    must_be={
        **{key: value for key, value in LIKE_OPENAI.items() if key not in ("norm_eps", "attn_norm_num_groups")},
        "center_input_sample": False,
        "time_embedding_type": ("positional", "learned"),
        "mid_block_type": "UNetMidBlock2D",
        "mid_block_scale_factor": 1,
        "act_fn": ("silu", "swish"),
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": (None, 1000),
        "in_channels": 3,
        "patch_size": 1,
    },
    needs_recipe=True,
    projection_axes=1,
    is_stacked_by_head=True,
)
"""That of improved-diffusion too, whose networks are some of those of guided-diffusion."""

GUIDED_DIFFUSION_NEW_ORDER: Final = replace(GUIDED_DIFFUSION, is_stacked_by_head=False)
"""With --use_new_attention_order."""

LAYOUTS: Final = {layout.name: layout for layout in (DDPM_TORCH, ERMONGROUP_DDIM, GUIDED_DIFFUSION)}
