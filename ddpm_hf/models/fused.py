r"""Layers that compute in fewer passes than what they stand for, or keep less of it for the backward pass.

They hold the parameters of the layers they derive from, under the same names, and give the same results up to rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ActivatedGroupNorm(nn.GroupNorm):
    r"""activation(norm(x)); with SiLU in one operation, differentiable twice, that keeps nothing but x.

    Autograd keeps the input of each operation: x of the norm, n = norm(x) of SiLU. But n is cheap to compute again.
    With the gradient g of silu(n),

    .. math:: \bar n = g \, \sigma(n) \, (1 + n (1 - \sigma(n)))

    and the norm's own backward pass takes it to x, weight and bias.
    """

    def __init__(self, groups: int, channels: int, eps: float, activation: nn.Module) -> None:
        super().__init__(groups, channels, eps)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        # A compiler fuses the two, and decides itself what to compute again.
        if torch.compiler.is_compiling() or not isinstance(self.activation, nn.SiLU):
            return self.activation(super().forward(x))  # type: ignore[no-any-return]
        return _NormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # this derivative is itself to be differentiated
            y = F.silu(F.group_norm(x, ctx.groups, weight, bias, ctx.eps)).to(gradient.dtype)
            needed = [tensor for tensor, is_wanted in zip(saved, wanted, strict=True) if is_wanted]
            found = iter(torch.autograd.grad(y, needed, gradient, create_graph=True))
            return *(next(found) if is_wanted else None for is_wanted in wanted), None, None

        # Under autocast the norm was in float32, whatever x was; here autocast is over.
        dtype = torch.promote_types(gradient.dtype, weight.dtype)
        is_channels_last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_channels_last else torch.contiguous_format  # that the two operations know
        x, gradient = (tensor.to(dtype).contiguous(memory_format=layout) for tensor in (x, gradient))
        shape = (*x.shape[:2], x[0, 0].numel(), ctx.groups)
        normed, mean, reciprocal_std = torch.ops.aten.native_group_norm(
            x, weight.to(dtype), bias.to(dtype), *shape, ctx.eps
        )
        gradient = torch.ops.aten.silu_backward.grad_input(gradient, normed, grad_input=normed)
        gradients = torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, reciprocal_std, weight.to(dtype), *shape, wanted
        )
        return *gradients, None, None


class Dropout(nn.Dropout):
    """The same numbers as `nn.Dropout`, whose mask on a CPU takes as much memory as x; here it is one byte a number."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.native_dropout(x, self.p, train=True)[0] if self.training and self.p > 0 else x


class ConvOfRepeatedPixels(nn.Conv2d):
    """A 3x3 convolution, padding 1, of the input with each pixel repeated 2x2.

    An output pixel then sees 2x2 input pixels, one of them once, two twice and one four times. So both are one
    transposed convolution of stride 2, whose 4x4 weights are sums of the 3x3 ones: 4/9 of the multiplications, and no
    repeated pixels in memory.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', 2H, 2W)."""
        # On one axis: each of the four weights as a sum of the three, which a transposed convolution takes in reverse.
        # [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], made where the weight is: a GPU would be waited for by a copy.
        places = torch.arange(4, device=self.weight.device)[:, None] + torch.arange(3, device=self.weight.device)
        sums = (places // 2 == 1).to(self.weight.dtype)
        weight = (self.weight.flatten(2) @ torch.kron(sums, sums).T).view(*self.weight.shape[:2], 4, 4)
        return F.conv_transpose2d(x, weight.transpose(0, 1), self.bias, stride=2, padding=1)
