"""Code of pages and docstrings leaves the process as it was."""

import logging
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """What accelerate remembers, torch's threads, and loggers."""
    threads, ours, root = torch.get_num_threads(), logging.getLogger("ddpm_hf"), logging.getLogger()
    levels, handlers = (ours.level, root.level), list(root.handlers)
    yield
    ours.setLevel(levels[0])
    root.setLevel(levels[1])
    root.handlers[:] = handlers
    torch.set_num_threads(threads)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
