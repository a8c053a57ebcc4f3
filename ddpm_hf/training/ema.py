"""The moving averages of a network's weights."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddpm_hf.training.power_functions import exponent_of, share_of_update


class EMA:
    r"""Exponential moving averages of parameters, with the warm-up of Ho et al.'s code.

    .. math:: \bar\theta \leftarrow d_n \bar\theta + (1 - d_n) \theta, \qquad d_n = \min(d, (1 + n) / (10 + n))

    at the n-th update, n = 1, 2, ...: the first updates follow the weights closely, so that the initial weights do not
    stay in the average. Beside them it can keep averages whose length grows with the run, from which
    :mod:`~ddpm_hf.training.snapshots` puts together others afterwards.

    Args:
        parameters: The parameters to average. They are kept by reference; the averages start at their values.
        decays: One d for each average, at least 0 and below 1.
        sigma_rels: Relative lengths of averages with the profile of a power function, if any.

    Attributes:
        averages: decay -> the averages in the order of the parameters.
        by_length: sigma_rel -> those of that relative length.
        num_updates: n.

    Examples:
        >>> network = nn.Linear(2, 1)
        >>> ema = EMA(network.parameters(), decays=[0.999])
        >>> ema.update()  # after each step of the optimizer
        >>> with ema.averaged_weights():
        ...     output = network(torch.ones(1, 2))
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], decays: Sequence[float], sigma_rels: Sequence[float] = ()
    ) -> None:
        for decay in decays:
            if not 0 <= decay < 1:
                raise ValueError(f"the decay of the average is {decay} and must be at least 0 and below 1")
        self.num_updates = 0
        self._parameters = list(parameters)
        self._exponents = {length: exponent_of(length) for length in sigma_rels}
        self.averages: dict[float, list[Tensor]] = {decay: self._copies() for decay in decays}
        self.by_length: dict[float, list[Tensor]] = {length: self._copies() for length in sigma_rels}

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

        for length, averages in self.by_length.items():
            share = share_of_update(self._exponents[length], self.num_updates)
            torch._foreach_lerp_(averages, parameters, share)

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

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def _swap(self, averages: list[Tensor]) -> None:
        # One tensor at a time, so that the whole network is never in memory once more.
        for parameter, average in zip(self._parameters, averages, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
