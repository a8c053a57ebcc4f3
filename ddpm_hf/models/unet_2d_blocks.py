"""What the UNet is built of: residual block, attention, and the five blocks of one resolution each.

Parameters carry the names that diffusers gives them, so checkpoints go both ways. Shapes: B images, C channels, HxW
pixels, E channels of the time embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_hf.models.fused import ActivatedGroupNorm, ConvOfRepeatedPixels, Dropout
from ddpm_hf.models.unet_2d_config import ACTIVATIONS


@dataclass(frozen=True)
class BlockConfig:
    """What all residual and attention blocks of one network have in common.

    Attributes:
        time_channels: E.
        groups: groups of the group norms.
        eps: epsilon of the group norms.
        activation: a key of `unet_2d_config.ACTIVATIONS`.
        dropout: probability, before the last convolution of a residual block.
        is_scale_shift: the time embedding scales and shifts the second norm's output; else it is added before.
        head_channels: channels of an attention head; None for one head of all channels.
    """

    time_channels: int
    groups: int
    eps: float
    activation: str
    dropout: float
    is_scale_shift: bool
    head_channels: int | None


class Downsample(nn.Module):
    """Halves the resolution by a strided convolution. Padding 0 pads one row and column below and to the right only."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=padding)
        self.pads_end = padding == 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pads_end else x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvOfRepeatedPixels(channels, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(x)  # type: ignore[no-any-return]


def double(x: Tensor) -> Tensor:
    """Each pixel becomes 2x2 of it."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """Each 2x2 pixels become their mean."""
    return F.avg_pool2d(x, kernel_size=2)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))) + time))) (Ho et al. 2020, appendix B), divided by `output_scale`.

    Args:
        in_channels: C.
        out_channels: C'; where it differs from C the shortcut is a 1x1 convolution.
        config: common settings.
        output_scale: divides the result.
        resample: `double` or `halve`, applied to both branches (then the block changes the resolution).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: BlockConfig,
        output_scale: float = 1.0,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.nonlinearity = resolve_name(ACTIVATIONS[config.activation])()
        self.norm1 = ActivatedGroupNorm(config.groups, in_channels, config.eps, self.nonlinearity)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_channels, out_channels * (2 if config.is_scale_shift else 1))
        self.norm2 = (
            nn.GroupNorm(config.groups, out_channels, config.eps)
            if config.is_scale_shift
            else ActivatedGroupNorm(config.groups, out_channels, config.eps, self.nonlinearity)
        )
        self.dropout = Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, kernel_size=1) if in_channels != out_channels else None
        )
        self.is_scale_shift = config.is_scale_shift
        self.output_scale = output_scale
        self.resample = resample

    def forward(self, x: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        """x and skip, of C channels together (B, C, H, W), and the activated time embedding (B, E) to (B, C', H, W)."""
        if skip is not None:  # joined here, so that gradient checkpointing keeps the two, which others keep as well
            x = torch.cat([x, skip], dim=1)
        h = self.norm1(x)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        time = self.time_emb_proj(time)[:, :, None, None]
        if self.is_scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.nonlinearity(self.norm2(h) * (1 + scale) + shift)
        else:
            h = self.norm2(h.add_(time))
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        total: Tensor = h.add_(x)
        return total if self.output_scale == 1 else total / self.output_scale


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r"""softmax(q k^T / sqrt(c)) v of each head (Vaswani et al. 2017, eq. 1); all (B, heads, HW, c)."""
    pixels, channels = q.shape[2:]
    if q.device.type == "cpu" and pixels <= channels:  # faster, and the weights of all pairs are no larger than q
        weights: Tensor = (q * channels**-0.5 @ k.transpose(2, 3)).softmax(dim=3)
        return weights @ v
    return F.scaled_dot_product_attention(q, k, v)


def cast_as_autocast_would(x: Tensor) -> Tensor:
    """The input of a matrix product, in the type in which autocast has the product."""
    kind = x.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if is_cast else x


class Attention(nn.Module):
    """x + self-attention over all pixels of norm(x), divided by `output_scale`.

    Args:
        channels: C.
        head_channels: channels of a head, of which there are as many as fit into C; one head of C when None.
        groups: groups of the norm; None for no norm.
        eps: epsilon of the norm.
        output_scale: divides the result.
    """

    # Tells diffusers' loader to rename query, key, value and proj_attn of checkpoints from before its version 0.18.
    _from_deprecated_attn_block = True

    def __init__(
        self, channels: int, head_channels: int | None, groups: int | None, eps: float, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        head_channels = head_channels or channels
        self.heads = channels // head_channels
        inner = self.heads * head_channels
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        normed = x if self.group_norm is None else self.group_norm(x)
        # (B, HW, C), cast and copied once and not by each projection
        pixels = cast_as_autocast_would(normed).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (
            project(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, HW, head_channels)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, heads * head_channels)
        total: Tensor = x + self.to_out[0](mixed).transpose(1, 2).reshape(x.shape)
        return total if self.output_scale == 1 else total / self.output_scale


class _Block(nn.Module):
    """Residual blocks at one resolution, each followed by an attention where the kind of block has them.

    Args:
        in_channels: input channels of each residual block.
        out_channels: output channels of all of them.
        config: common settings.
        has_attention: whether an attention follows each.

    Attributes:
        gradient_checkpointing: set by `ModelMixin.enable_gradient_checkpointing`; residual blocks and attentions are
            then computed again in the backward pass, in place of keeping what is inside them.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, in_channels: list[int], out_channels: int, config: BlockConfig, has_attention: bool) -> None:
        super().__init__()
        resnets, attentions = [], []
        for channels in in_channels:  # in turn, as diffusers makes them, so that a seed gives the same initial weights
            resnets.append(ResidualBlock(channels, out_channels, config))
            if has_attention:
                attentions.append(Attention(out_channels, config.head_channels, config.groups, config.eps))
        self.attentions = nn.ModuleList(attentions) if has_attention else None
        self.resnets = nn.ModuleList(resnets)

    def _layer(self, i: int, x: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self._run(self.resnets[i], x, time, skip)
        return x if self.attentions is None else self._run(self.attentions[i], x)

    def _run(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *inputs)  # type: ignore[no-any-return]
        return module(*inputs)  # type: ignore[no-any-return]


class DownBlock2D(_Block):
    """Residual blocks, then half the resolution.

    Args:
        in_channels: C, channels of the input.
        out_channels: C', channels of the output.
        num_layers: residual blocks.
        config: common settings.
        padding: padding of the down-sampling convolution, 0 or 1.
        sampling: `conv` or `resnet` to halve the resolution, None to keep it. (Only blocks with attention have the
            choice in diffusers; the others have `own_sampling`.)
    """

    has_attention = False
    own_sampling: str | None = "conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        config: BlockConfig,
        padding: int,
        sampling: str | None,
    ) -> None:
        super().__init__([in_channels] + [out_channels] * (num_layers - 1), out_channels, config, self.has_attention)
        self.downsamplers = None
        if sampling is not None:
            is_residual = (self.own_sampling or sampling) == "resnet"
            residual = ResidualBlock(out_channels, out_channels, config, resample=halve) if is_residual else None
            self.downsamplers = nn.ModuleList([residual or Downsample(out_channels, padding)])

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, H, W), time (B, E) to the result (B, C', H/2, W/2) and the results on the way, for the up blocks."""
        skips = []
        for i in range(len(self.resnets)):
            x = self._layer(i, x, time)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x, time)
            skips.append(x)
        return x, skips


class ResnetDownsampleBlock2D(DownBlock2D):
    """The same, but a residual block halves the resolution (Song et al. 2021; Dhariwal and Nichol 2021)."""

    own_sampling = "resnet"


class AttnDownBlock2D(DownBlock2D):
    """The same with attention, and with either way to halve the resolution."""

    has_attention = True
    own_sampling = None


class UNetMidBlock2D(_Block):
    """Residual block, attention, residual block, at the lowest resolution.

    Args:
        channels: C.
        config: common settings.
        output_scale: divisor of the results of residual blocks and attention.
        attention_groups: groups of the attention's norm; None for no norm.
        add_attention: False leaves it out.
    """

    def __init__(
        self, channels: int, config: BlockConfig, output_scale: float, attention_groups: int | None, add_attention: bool
    ) -> None:
        super().__init__([], channels, config, has_attention=True)
        first = ResidualBlock(channels, channels, config, output_scale)
        attention: nn.Module = nn.Identity()
        if add_attention:
            attention = Attention(channels, config.head_channels, attention_groups, config.eps, output_scale)
        self.attentions = nn.ModuleList([attention, nn.Identity()])
        self.resnets = nn.ModuleList([first, ResidualBlock(channels, channels, config, output_scale)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) and (B, E) to (B, C, H, W)."""
        return self._layer(1, self._layer(0, x, time), time)


class UpBlock2D(_Block):
    """Residual blocks that take in the down blocks' results, then twice the resolution.

    Args:
        in_channels: C, channels of the input.
        out_channels: C', channels of the output.
        skip_channels: channels of the down blocks' results, in the order in which they are used.
        config: common settings.
        sampling: `conv` or `resnet` to double the resolution, None to keep it. (As in `DownBlock2D`.)
    """

    has_attention = False
    own_sampling: str | None = "conv"

    def __init__(
        self, in_channels: int, out_channels: int, skip_channels: list[int], config: BlockConfig, sampling: str | None
    ) -> None:
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        joined = [width + skip for width, skip in zip(widths, skip_channels, strict=True)]
        super().__init__(joined, out_channels, config, self.has_attention)
        self.upsamplers = None
        if sampling is not None:
            is_residual = (self.own_sampling or sampling) == "resnet"
            residual = ResidualBlock(out_channels, out_channels, config, resample=double) if is_residual else None
            self.upsamplers = nn.ModuleList([residual or Upsample(out_channels)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        """x (B, C, H, W) and time (B, E) to (B, C', 2H, 2W); `skips` holds one result for each residual block."""
        for i, skip in enumerate(skips):
            x = self._layer(i, x, time, skip)
        return x if self.upsamplers is None else self.upsamplers[0](x, time)


class ResnetUpsampleBlock2D(UpBlock2D):
    """The same, but a residual block doubles the resolution."""

    own_sampling = "resnet"


class AttnUpBlock2D(UpBlock2D):
    """The same with attention, and with either way to double the resolution."""

    has_attention = True
    own_sampling = None
