"""The network of OpenAI's improved-diffusion and guided-diffusion, written from its layout: an oracle for conversions.

A network is first a table of shapes by name, from which come the number of parameters and random weights, and then a
function of such weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.peers import Weights

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class OpenAINetwork:
    """What their flags say of a network.

    Attributes:
        width: channels that the time embedding's waves have.
        levels: channels of each level.
        layers: residual blocks of a level on the way down.
        attended: levels with attention.
        heads: heads of each level's attention; the middle has those of the last.
        is_new_order: query, key and value are stacked as wholes, and not by head.
        is_scale_shift: the embedding scales and shifts.
        is_residual: residual blocks change the resolution.
        classes: number of classes.
        learns_variance: six outputs.
        time_factor: the embedding sees the timestep times this.
        answers: outputs of a classifier, which ends after the middle; None for a network that denoises.
        last_pixels: pixels of the last level, for a classifier.
    """

    width: int
    levels: Sequence[int]
    layers: int
    attended: frozenset[int]
    heads: Sequence[int]
    is_new_order: bool = False
    is_scale_shift: bool = True
    is_residual: bool = False
    classes: int | None = None
    learns_variance: bool = True
    time_factor: float = 1.0
    answers: int | None = None
    last_pixels: int = 0

    def shapes(self) -> Shapes:
        """Every parameter."""
        found: Shapes = {}
        embedded = 4 * self.width

        def layer(name: str, *shape: int) -> None:
            found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

        def residual(name: str, c_in: int, c_out: int) -> None:
            layer(f"{name}.in_layers.0", c_in)
            layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
            layer(f"{name}.emb_layers.1", c_out * (1 + self.is_scale_shift), embedded)
            layer(f"{name}.out_layers.0", c_out)
            layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
            if c_in != c_out:
                layer(f"{name}.skip_connection", c_out, c_in, 1, 1)

        def attention(name: str, c: int) -> None:
            layer(f"{name}.norm", c)
            layer(f"{name}.qkv", 3 * c, c, 1)
            layer(f"{name}.proj_out", c, c, 1)

        layer("time_embed.0", embedded, self.width)
        layer("time_embed.2", embedded, embedded)
        if self.classes is not None:
            found["label_emb.weight"] = (self.classes, embedded)
        c = self.levels[0]
        layer("input_blocks.0.0", c, 3, 3, 3)
        skips, last = [c], len(self.levels) - 1
        for i, level in enumerate(self.levels):
            for _ in range(self.layers):
                name = f"input_blocks.{len(skips)}"
                residual(f"{name}.0", c, level)
                c = level
                if i in self.attended:
                    attention(f"{name}.1", c)
                skips.append(c)
            if i < last:
                name = f"input_blocks.{len(skips)}.0"
                residual(name, c, c) if self.is_residual else layer(f"{name}.op", c, c, 3, 3)
                skips.append(c)
        residual("middle_block.0", c, c)
        attention("middle_block.1", c)
        residual("middle_block.2", c, c)
        if self.answers is not None:
            layer("out.0", c)
            found["out.2.positional_embedding"] = (c, self.last_pixels + 1)
            layer("out.2.qkv_proj", 3 * c, c, 1)
            layer("out.2.c_proj", self.answers, c, 1)
            return found
        n = 0
        for i in range(last, -1, -1):
            for j in range(self.layers + 1):
                residual(f"output_blocks.{n}.0", c + skips.pop(), self.levels[i])
                c = self.levels[i]
                if i in self.attended:
                    attention(f"output_blocks.{n}.1", c)
                if i > 0 and j == self.layers:
                    name = f"output_blocks.{n}.{2 if i in self.attended else 1}"
                    residual(name, c, c) if self.is_residual else layer(f"{name}.conv", c, c, 3, 3)
                n += 1
        layer("out.0", c)
        layer("out.2", 6 if self.learns_variance else 3, c, 3, 3)
        return found

    def parameters(self) -> int:
        """How many numbers there are to learn."""
        return sum(map(math.prod, self.shapes().values()))

    def weights(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Weights:
        """Random ones that keep activations near unit variance."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name, shape in self.shapes().items():
            numbers = torch.randn(shape, generator=generator, dtype=dtype)
            if len(shape) > 1:
                found[name] = numbers / math.prod(shape[1:]) ** 0.5
            else:
                is_norm = name.endswith(".weight")
                found[name] = 0.1 * numbers + is_norm
        return found

    def forward(self, weights: Weights, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for noisy images (B, 3, H, W) at the timesteps (B,) of the process."""

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
            kernel = weights[f"{name}.weight"]
            return F.conv2d(x, kernel, weights[f"{name}.bias"], stride, padding=kernel.shape[-1] // 2)

        def norm(name: str, x: Tensor) -> Tensor:
            return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

        def double(x: Tensor) -> Tensor:
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

        def halve(x: Tensor) -> Tensor:
            return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))

        def residual(name: str, x: Tensor, resample=lambda x: x) -> Tensor:  # type: ignore[no-untyped-def]
            h = conv(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", x))))
            emb = linear(f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None]
            if self.is_scale_shift:
                scale, shift = emb.chunk(2, dim=1)
                h = norm(f"{name}.out_layers.0", h) * (scale + 1) + shift
            else:
                h = norm(f"{name}.out_layers.0", h + emb)
            x = resample(x)
            if f"{name}.skip_connection.weight" in weights:
                x = conv(f"{name}.skip_connection", x)
            return x + conv(f"{name}.out_layers.3", F.silu(h))

        def attention(name: str, x: Tensor, heads: int) -> Tensor:
            normed = norm(f"{name}.norm", x).flatten(2)
            stacked = F.conv1d(normed, weights[f"{name}.qkv.weight"], weights[f"{name}.qkv.bias"])
            mixed = []
            width = x.shape[1] // heads
            for head in range(heads):  # one after the other, each with its own rows
                first = [x.shape[1] * part + head * width for part in range(3)]
                if not self.is_new_order:
                    first = [(3 * head + part) * width for part in range(3)]
                q, k, v = (stacked[:, row : row + width] for row in first)
                mixed.append(v @ (q.mT @ k / width**0.5).softmax(dim=2).mT)
            h = torch.cat(mixed, dim=1)
            return x + F.conv1d(h, weights[f"{name}.proj_out.weight"], weights[f"{name}.proj_out.bias"]).view_as(x)

        half = self.width // 2
        angles = (t.float() * self.time_factor)[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(x)
        embedding = linear("time_embed.2", F.silu(linear("time_embed.0", waves)))
        if labels is not None:
            embedding = embedding + weights["label_emb.weight"][labels]

        x = conv("input_blocks.0.0", x)
        skips, last = [x], len(self.levels) - 1
        for i in range(len(self.levels)):
            for _ in range(self.layers):
                name = f"input_blocks.{len(skips)}"
                x = residual(f"{name}.0", x)
                if i in self.attended:
                    x = attention(f"{name}.1", x, self.heads[i])
                skips.append(x)
            if i < last:
                name = f"input_blocks.{len(skips)}.0"
                x = residual(name, x, halve) if self.is_residual else conv(f"{name}.op", x, stride=2)
                skips.append(x)
        x = residual("middle_block.2", attention("middle_block.1", residual("middle_block.0", x), self.heads[-1]))
        if self.answers is not None:
            x = F.silu(norm("out.0", x)).flatten(2)
            x = torch.cat([x.mean(dim=2)[:, :, None], x], dim=2) + weights["out.2.positional_embedding"]
            stacked = F.conv1d(x, weights["out.2.qkv_proj.weight"], weights["out.2.qkv_proj.bias"])
            mixed = []
            for q, k, v in zip(*(part.split(64, dim=1) for part in stacked.chunk(3, dim=1)), strict=True):
                mixed.append(v @ (q.mT @ k / 8).softmax(dim=2).mT)
            answers = F.conv1d(torch.cat(mixed, dim=1), weights["out.2.c_proj.weight"], weights["out.2.c_proj.bias"])
            return answers[:, :, 0]
        for n, i in enumerate(sorted(list(range(last + 1)) * (self.layers + 1), reverse=True)):
            x = residual(f"output_blocks.{n}.0", torch.cat([x, skips.pop()], dim=1))
            if i in self.attended:
                x = attention(f"output_blocks.{n}.1", x, self.heads[i])
            if i > 0 and n % (self.layers + 1) == self.layers:
                name = f"output_blocks.{n}.{2 if i in self.attended else 1}"
                x = residual(name, x, double) if self.is_residual else conv(f"{name}.conv", double(x))
        return conv("out.2", F.silu(norm("out.0", x)))
