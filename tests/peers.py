"""The networks of other projects, written from what is known of their layouts: oracles for conversions.

Each is a function of weights by name, so it also says which names there are, and of which shapes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


class _Maker:
    """Random weights that keep activations near unit variance."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: Weights = {}

    def layer(self, name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        self.weights[f"{name}.weight"] = torch.randn(shape, generator=self.generator) / fan_in**0.5
        self.weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)

    def norm(self, name: str, channels: int) -> None:
        self.weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=self.generator)
        self.weights[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=self.generator)

    def residual(self, name: str, c_in: int, c_out: int, time_channels: int, *, time: str, shortcut: str) -> None:
        self.norm(f"{name}.norm1", c_in)
        self.layer(f"{name}.conv1", c_out, c_in, 3, 3)
        self.layer(f"{name}.{time}", c_out, time_channels)
        self.norm(f"{name}.norm2", c_out)
        self.layer(f"{name}.conv2", c_out, c_out, 3, 3)
        if c_in != c_out:
            self.layer(f"{name}.{shortcut}", c_out, c_in, 1, 1)


def ddpm_torch_weights(
    hid_channels: int = 32,
    ch_multipliers: Sequence[int] = (1, 2, 2),
    num_res_blocks: int = 2,
    apply_attn: Sequence[bool] = (False, True, False),
    in_channels: int = 3,
    out_channels: int = 3,
    time_embedding_dim: int = 128,
    seed: int = 0,
) -> Weights:
    make = _Maker(seed)

    def residual(name: str, c_in: int, c_out: int) -> None:
        make.residual(name, c_in, c_out, time_embedding_dim, time="fc", shortcut="skip")

    def attention(name: str, c: int) -> None:
        make.norm(f"{name}.norm", c)
        make.layer(f"{name}.project_in", 3 * c, c, 1, 1)
        make.layer(f"{name}.project_out", c, c, 1, 1)

    def block(name: str, c_in: int, c_out: int, has_attention: bool) -> None:
        residual(f"{name}.0" if has_attention else name, c_in, c_out)
        if has_attention:
            attention(f"{name}.1", c_out)

    make.layer("embed.0", time_embedding_dim, hid_channels)
    make.layer("embed.2", time_embedding_dim, time_embedding_dim)
    make.layer("in_conv", hid_channels, in_channels, 3, 3)
    widths = [hid_channels * multiplier for multiplier in ch_multipliers]
    last = len(widths) - 1
    skips, c = [hid_channels], hid_channels
    for i, width in enumerate(widths):
        for j in range(num_res_blocks):
            block(f"downsamples.level_{i}.{j}", c, width, apply_attn[i])
            c = width
            skips.append(c)
        if i < last:
            make.layer(f"downsamples.level_{i}.{num_res_blocks}.1", c, c, 3, 3)
            skips.append(c)
    residual("middle.0", c, c)
    attention("middle.1", c)
    residual("middle.2", c, c)
    for i in range(last, -1, -1):
        for j in range(num_res_blocks + 1):
            block(f"upsamples.level_{i}.{j}", c + skips.pop(), widths[i], apply_attn[i])
            c = widths[i]
        if i > 0:
            make.layer(f"upsamples.level_{i}.{num_res_blocks + 1}.1", c, c, 3, 3)
    make.norm("out_conv.0", c)
    make.layer("out_conv.2", out_channels, c, 3, 3)
    return make.weights


def ddpm_torch_forward(weights: Weights, x: Tensor, t: Tensor, eps: float = 1e-6) -> Tensor:
    def has(name: str) -> bool:
        return f"{name}.weight" in weights

    def block(name: str, x: Tensor, time: Tensor) -> Tensor:
        if has(f"{name}.0.norm1"):
            parts = {"time": "fc", "shortcut": "skip"}
            return joined_attention(f"{name}.1", _residual(weights, f"{name}.0", x, time, eps, **parts))
        return _residual(weights, name, x, time, eps, time="fc", shortcut="skip")

    def joined_attention(name: str, x: Tensor) -> Tensor:
        q, k, v = _conv(weights, f"{name}.project_in", _norm(weights, f"{name}.norm", x, eps)).chunk(3, dim=1)
        return x + _conv(weights, f"{name}.project_out", _attend(q, k, v))

    time = _time(weights, ("embed.0", "embed.2"), t, weights["embed.0.weight"].shape[1])
    x = _conv(weights, "in_conv", x)
    skips, levels = [x], len({key.split(".")[1] for key in weights if key.startswith("downsamples.")})
    for i in range(levels):
        j = 0
        while has(f"downsamples.level_{i}.{j}.conv1") or has(f"downsamples.level_{i}.{j}.0.conv1"):
            x = block(f"downsamples.level_{i}.{j}", x, time)
            skips.append(x)
            j += 1
        if has(f"downsamples.level_{i}.{j}.1"):
            x = _halve(weights, f"downsamples.level_{i}.{j}.1", x)
            skips.append(x)
    x = _residual(weights, "middle.0", x, time, eps, time="fc", shortcut="skip")
    x = joined_attention("middle.1", x)
    x = _residual(weights, "middle.2", x, time, eps, time="fc", shortcut="skip")
    for i in range(levels - 1, -1, -1):
        j = 0
        while has(f"upsamples.level_{i}.{j}.conv1") or has(f"upsamples.level_{i}.{j}.0.conv1"):
            x = block(f"upsamples.level_{i}.{j}", torch.cat([x, skips.pop()], dim=1), time)
            j += 1
        if has(f"upsamples.level_{i}.{j}.1"):
            x = _double(weights, f"upsamples.level_{i}.{j}.1", x)
    return _conv(weights, "out_conv.2", F.silu(_norm(weights, "out_conv.0", x, eps)))


def ermongroup_weights(
    ch: int = 32,
    ch_mult: Sequence[int] = (1, 2, 2),
    num_res_blocks: int = 2,
    has_attention: Sequence[bool] = (False, True, False),
    in_channels: int = 3,
    out_ch: int = 3,
    seed: int = 0,
) -> Weights:
    make = _Maker(seed)

    def residual(name: str, c_in: int, c_out: int) -> None:
        make.residual(name, c_in, c_out, 4 * ch, time="temb_proj", shortcut="nin_shortcut")

    def attention(name: str, c: int) -> None:
        make.norm(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            make.layer(f"{name}.{part}", c, c, 1, 1)

    make.layer("temb.dense.0", 4 * ch, ch)
    make.layer("temb.dense.1", 4 * ch, 4 * ch)
    make.layer("conv_in", ch, in_channels, 3, 3)
    skips, c = [ch], ch
    for i, multiplier in enumerate(ch_mult):
        for j in range(num_res_blocks):
            residual(f"down.{i}.block.{j}", c, ch * multiplier)
            c = ch * multiplier
            if has_attention[i]:
                attention(f"down.{i}.attn.{j}", c)
            skips.append(c)
        if i < len(ch_mult) - 1:
            make.layer(f"down.{i}.downsample.conv", c, c, 3, 3)
            skips.append(c)
    residual("mid.block_1", c, c)
    attention("mid.attn_1", c)
    residual("mid.block_2", c, c)
    for i in reversed(range(len(ch_mult))):
        for j in range(num_res_blocks + 1):
            residual(f"up.{i}.block.{j}", c + skips.pop(), ch * ch_mult[i])
            c = ch * ch_mult[i]
            if has_attention[i]:
                attention(f"up.{i}.attn.{j}", c)
        if i > 0:
            make.layer(f"up.{i}.upsample.conv", c, c, 3, 3)
    make.norm("norm_out", c)
    make.layer("conv_out", out_ch, c, 3, 3)
    return make.weights


def ermongroup_forward(weights: Weights, x: Tensor, t: Tensor, eps: float = 1e-6) -> Tensor:
    def numbers(prefix: str) -> list[int]:
        return sorted({int(key[len(prefix) :].split(".")[0]) for key in weights if key.startswith(prefix)})

    def residual(name: str, x: Tensor) -> Tensor:
        return _residual(weights, name, x, time, eps, time="temb_proj", shortcut="nin_shortcut")

    def attention(name: str, x: Tensor) -> Tensor:
        if f"{name}.q.weight" not in weights:
            return x
        normed = _norm(weights, f"{name}.norm", x, eps)
        q, k, v = (_conv(weights, f"{name}.{part}", normed) for part in "qkv")
        return x + _conv(weights, f"{name}.proj_out", _attend(q, k, v))

    time = _time(weights, ("temb.dense.0", "temb.dense.1"), t, weights["temb.dense.0.weight"].shape[1])
    x = _conv(weights, "conv_in", x)
    skips = [x]
    for i in numbers("down."):
        for j in numbers(f"down.{i}.block."):
            x = attention(f"down.{i}.attn.{j}", residual(f"down.{i}.block.{j}", x))
            skips.append(x)
        if f"down.{i}.downsample.conv.weight" in weights:
            x = _halve(weights, f"down.{i}.downsample.conv", x)
            skips.append(x)
    x = residual("mid.block_2", attention("mid.attn_1", residual("mid.block_1", x)))
    for i in reversed(numbers("up.")):
        for j in numbers(f"up.{i}.block."):
            x = attention(f"up.{i}.attn.{j}", residual(f"up.{i}.block.{j}", torch.cat([x, skips.pop()], dim=1)))
        if i > 0:
            x = _double(weights, f"up.{i}.upsample.conv", x)
    return _conv(weights, "conv_out", F.silu(_norm(weights, "norm_out", x, eps)))


def _time(weights: Weights, names: tuple[str, str], t: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, at frequencies 1 .. 1/10000 with both ends, then a network of one hidden layer."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, channels // 2, dtype=torch.float64)
    angles = t.double()[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(weights[f"{names[0]}.weight"])
    return _linear(weights, names[1], F.silu(_linear(weights, names[0], waves)))


def _residual(weights: Weights, name: str, x: Tensor, embedding: Tensor, eps: float, **parts: Any) -> Tensor:
    h = _conv(weights, f"{name}.conv1", F.silu(_norm(weights, f"{name}.norm1", x, eps)))
    h = h + _linear(weights, f"{name}.{parts['time']}", F.silu(embedding))[:, :, None, None]
    h = _conv(weights, f"{name}.conv2", F.silu(_norm(weights, f"{name}.norm2", h, eps)))
    shortcut = f"{name}.{parts['shortcut']}"
    return h + (_conv(weights, shortcut, x) if f"{shortcut}.weight" in weights else x)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head over all pixels."""
    scores = q.flatten(2).mT @ k.flatten(2) / q.shape[1] ** 0.5
    return (v.flatten(2) @ scores.softmax(dim=2).mT).view_as(v)


def _norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """Group norm of 32 groups, spelt out."""
    groups = x.unflatten(1, (32, -1)).flatten(2)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    normed = ((groups - mean) / (variance + eps).sqrt()).view_as(x)
    return normed * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def _conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    kernel = weights[f"{name}.weight"]
    return F.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def _halve(weights: Weights, name: str, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding at stride 2 and even sizes: nothing above and to the left, one below and right."""
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)


def _double(weights: Weights, name: str, x: Tensor) -> Tensor:
    return _conv(weights, name, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
