"""The moving average of a network's weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    r"""Exponential moving average of parameters, with the warm-up of Ho et al.'s code.

    .. math:: \bar\theta \leftarrow d_n \bar\theta + (1 - d_n) \theta, \qquad d_n = \min(d, (1 + n) / (10 + n))

    at the n-th update, n = 1, 2, ...: the first updates follow the weights closely, so that the initial weights do not
    stay in the average.

    Args:
        parameters: The parameters to average. They are kept by reference; the average starts at their values.
        decay: d, at least 0 and below 1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average is {decay} and must be at least 0 and below 1")
        self.decay = decay
        self.num_updates = 0
        self._parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the present parameters, in place."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self._parameters], 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the network holds the averages; after it, bit for bit the weights that it had."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """``num_updates`` and ``averages``, the tensors in the order of the parameters."""
        return {"num_updates": self.num_updates, "averages": self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: the state has another number of tensors, or one of another shape.
        """
        averages: list[Tensor] = state["averages"]
        if [a.shape for a in averages] != [a.shape for a in self.averages]:
            raise ValueError("the saved averages are those of another network; load them into the one they came from")
        self.num_updates = state["num_updates"]
        for mine, saved in zip(self.averages, averages, strict=True):
            mine.copy_(saved)

    @torch.no_grad()
    def _swap(self) -> None:
        # One tensor at a time, so that the whole network is never in memory a third time.
        for parameter, average in zip(self._parameters, self.averages, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
