"""The moving averages of a network's weights."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    r"""Exponential moving averages of parameters, with the warm-up of Ho et al.'s code.

    .. math:: \bar\theta \leftarrow d_n \bar\theta + (1 - d_n) \theta, \qquad d_n = \min(d, (1 + n) / (10 + n))

    at the n-th update, n = 1, 2, ...: the first updates follow the weights closely, so that the initial weights do not
    stay in the average.

    Args:
        parameters: The parameters to average. They are kept by reference; the averages start at their values.
        decays: One d for each average, at least 0 and below 1.

    Attributes:
        averages: decay -> the averages in the order of the parameters.
        num_updates: n.

    Examples:
        >>> network = nn.Linear(2, 1)
        >>> ema = EMA(network.parameters(), decays=[0.999])
        >>> ema.update()  # after each step of the optimizer
        >>> with ema.averaged_weights():
        ...     output = network(torch.ones(1, 2))
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decays: Sequence[float]) -> None:
        for decay in decays:
            if not 0 <= decay < 1:
                raise ValueError(f"the decay of the average is {decay} and must be at least 0 and below 1")
        self.num_updates = 0
        self._parameters = list(parameters)
        self.averages: dict[float, list[Tensor]] = {
            decay: [parameter.detach().clone() for parameter in self._parameters] for decay in decays
        }

    def decay_now(self, decay: float) -> float:
        """d_n of the last update of the average of ``decay``."""
        return min(decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the present parameters, in place."""
        self.num_updates += 1
        parameters = [parameter.detach() for parameter in self._parameters]
        for decay, averages in self.averages.items():
            torch._foreach_lerp_(averages, parameters, 1 - self.decay_now(decay))

    @contextmanager
    def averaged_weights(self, decay: float | None = None) -> Iterator[None]:
        """Within the context the network holds the averages; after it, bit for bit the weights that it had.

        Args:
            decay: Decay of the average to use; None for the first one.
        """
        averages = self.averages[next(iter(self.averages)) if decay is None else decay]
        self._swap(averages)
        try:
            yield
        finally:
            self._swap(averages)

    @torch.no_grad()
    def _swap(self, averages: list[Tensor]) -> None:
        # One tensor at a time, so that the whole network is never in memory once more.
        for parameter, average in zip(self._parameters, averages, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
