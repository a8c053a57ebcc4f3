"""Random numbers as functions of a purpose, a seed and a key, the same in every process."""

from collections.abc import Sequence

import numpy as np
import torch


def random_stream(purpose: str, seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each purpose, seed and key."""
    return np.random.default_rng([*purpose.encode(), seed, *key])


def seed_from(purpose: str, seed: int, *key: int) -> int:
    """A seed for :func:`torch.manual_seed` of its own for each purpose, seed and key."""
    return int(random_stream(purpose, seed, *key).integers(2**63))


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per image, on the CPU, so that a seed gives the same noise in any batch and on any device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
