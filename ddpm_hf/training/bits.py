"""The same bits from the same run on a CUDA device, for a price (docs/resume.md, the same bits)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def reserve_workspace() -> None:
    """Give cuBLAS the memory with which it needs no sums in chance order; before its first product, or it is late."""
    os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Within the context torch takes only algorithms that give the same bits each time, if that is wanted.

    Args:
        wanted: False leaves all as it is.

    Raises:
        RuntimeError: within it, of torch, for an operation that has no such algorithm.
    """
    if not wanted:
        yield
        return
    reserve_workspace()
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # which shows faults, and costs a pass over all memory
    cudnn.deterministic, cudnn.benchmark = True, False  # its trial of algorithms picks by time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = chosen
