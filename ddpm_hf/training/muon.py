"""Muon: orthogonalised momentum for matrices and convolutions, Adam for all other weights."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_hf.training.optimization import OptimizerOptions

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Jordan et al.'s polynomial: after five times, singular values from 0.002 to 1 lie within 0.67 .. 1.21."""


def muon(parameters: Iterable[nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer of these parameters; a row of `choices.OPTIMIZERS`."""
    return Muon(parameters, options)


class Muon(torch.optim.Optimizer):
    r"""Steps of one size in all directions of a matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    With the gradient G of an m x n matrix W, or of a convolution as (out, in x k x k), and :math:`\beta` = betas[0],

    .. math::
        M \leftarrow \beta M + (1 - \beta) G, \qquad
        W \leftarrow (1 - \eta \lambda) W - 0.2\, \eta \sqrt{\max(m, n)}\; O(\beta M + (1 - \beta) G)

    where O(.) sets all singular values to about 1. Its entries have a root mean square of
    :math:`1 / \sqrt{\max(m, n)}`, so with the factor 0.2 updates are as large as Adam's (Liu et al. 2025, section 2.2)
    and one learning rate :math:`\eta` serves both. Weights of one dimension are AdamW's.

    Args:
        parameters: Whole ones, not shards; some of one dimension and some of more.
        options: Learning rate, betas, and the decoupled decay :math:`\lambda`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], options: OptimizerOptions) -> None:
        parameters = list(parameters)
        lr, betas, weight_decay = options.learning_rate, options.betas, options.weight_decay
        vectors = [parameter for parameter in parameters if parameter.ndim < 2]
        self._adam = torch.optim.AdamW(vectors, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        settings = {"lr": lr, "beta": betas[0], "weight_decay": weight_decay}
        super().__init__([{"params": matrices, **settings}, *self._adam.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # without a closure there is no loss
        """One update of the parameters that have a gradient.

        Args:
            closure: None; a gradient is taken once.
        """
        assert closure is None, "Muon takes no closure"
        matrices, vectors = self.param_groups
        self._adam.param_groups, self._adam.state = [vectors], self.state  # of which loading makes new ones
        self._adam.step()

        updates = defaultdict(list)  # by shape, so that all matrices of one shape are orthogonalised at once
        for weight in matrices["params"]:
            if weight.grad is not None:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - matrices["beta"])
                update = weight.grad.lerp(momentum, matrices["beta"]).flatten(1)
                updates[update.shape].append((weight, update))
        for shape, pairs in updates.items():
            weights = [weight for weight, _ in pairs]
            steps = orthogonalised(torch.stack([update for _, update in pairs]))
            torch._foreach_mul_(weights, 1 - matrices["lr"] * matrices["weight_decay"])
            size = 0.2 * matrices["lr"] * math.sqrt(max(shape))
            torch._foreach_add_(weights, [step.view_as(w) for w, step in zip(weights, steps, strict=True)], alpha=-size)


def orthogonalised(matrices: Tensor) -> Tensor:
    r"""Each of the matrices ``(B, m, n)`` with its singular vectors, and all singular values near 1.

    With m at most n, the iterations of Newton and Schulz, :math:`X \leftarrow (a + b S + c S^2) X` with
    :math:`S = X X^T`, multiply X by polynomials of its first S. These m x m matrices commute; so only they are
    multiplied each time, and X once, at the end: of the convolutions here, a quarter of the work.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    s = x @ x.mT
    factor: Tensor = torch.eye(len(s[0]), dtype=s.dtype, device=s.device)
    for _ in range(ITERATIONS):
        polynomial = torch.baddbmm(s, s, s, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor, s = polynomial @ factor, polynomial @ s @ polynomial
    return torch.bmm(factor, x)
