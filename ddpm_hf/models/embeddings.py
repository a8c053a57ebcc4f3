"""What the UNet makes of a timestep, before its blocks see it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of t at frequencies from 1 to 1/10000 (Vaswani et al. 2017). (B,) to float32 (B, channels)."""

    def __init__(self, channels: int, is_cosine_first: bool, frequency_shift: float) -> None:
        super().__init__()
        self.channels = channels
        self.is_cosine_first = is_cosine_first
        self.frequency_shift = frequency_shift

    def forward(self, t: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.float()[:, None] * torch.exp(-math.log(10000) / (half - self.frequency_shift) * steps)
        waves = [angles.cos(), angles.sin()] if self.is_cosine_first else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(waves, dim=1), (0, self.channels % 2))


class FourierEmbedding(nn.Module):
    """Sines and cosines of log t at fixed random frequencies (Song et al. 2021, NCSN++). (B,) to (B, 2 channels)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        torch.randn(channels)  # diffusers draws twice; so do we, that a seed gives the same initial weights
        self.weight = nn.Parameter(torch.randn(channels) * scale, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.log()[:, None] * self.weight * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, linear: (B, in_channels) to (B, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))  # type: ignore[no-any-return]
