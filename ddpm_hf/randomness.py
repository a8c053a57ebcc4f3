"""Random numbers as functions of a purpose, a seed and a key, the same in every process."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm_hf.settings import as_ints


def random_stream(purpose: str, seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each purpose, seed and key."""
    return np.random.default_rng([*purpose.encode(), seed, *key])


# Samples whose randomness is drawn by one generator. Any share of a batch costs at most the two blocks at its ends more
# than itself, and making a generator costs little beside drawing this many images.
BLOCK = 16


def drawn_in_blocks(start: int, stop: int, draw: Callable[[int], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Rows ``start`` to ``stop - 1`` of an endless table, which do not depend on how the table is cut.

    Args:
        start: The first row.
        stop: The row after the last one.
        draw: Makes block 0, 1, 2, ... of ``BLOCK`` rows each, by a generator of its own.
    """
    rows = np.concatenate([draw(block) for block in range(start // BLOCK, -(-stop // BLOCK))])
    return rows[start % BLOCK : start % BLOCK + stop - start]


def seed_from(purpose: str, seed: int, *key: int) -> int:
    """A seed for :func:`torch.manual_seed` of its own for each purpose, seed and key."""
    return int(random_stream(purpose, seed, *key).integers(2**63))


def generators_of(seeds: Sequence[int] | torch.Tensor) -> list[torch.Generator]:
    """One generator per image, on the CPU, so that a seed gives the same noise in any batch and on any device.

    Args:
        seeds: integers in any row: a list, a range, an array or tensor of one dimension.

    Raises:
        ValueError: they are none, or torch has no such seeds.
    """
    numbers = as_ints("seeds", seeds)
    outside = [seed for seed in numbers if not 0 <= seed < 2**64]
    if outside:
        raise ValueError(f"seeds holds {outside[0]}; give whole numbers from 0 to 2**64 - 1.")
    return [torch.Generator().manual_seed(seed) for seed in numbers]
