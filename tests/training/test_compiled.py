"""A compiled network inside the wrapper that adds up gradients over processes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ddpm_hf.models.unet_2d import UNet2DModel
from tests.networks import TWO_LEVELS
from tests.runs import start_processes_of


def gradients_of(compiled: bool) -> tuple[list[Tensor], int]:
    """Gradients of a step on this process's images, added up over all, and the graphs that were compiled for it."""
    torch.manual_seed(0)
    blocks = {**TWO_LEVELS, "block_out_channels": (32, 128)}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks)
    graphs: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    if compiled:
        unet.compile(backend=note)
    model = DistributedDataParallel(unet, bucket_cap_mb=1)  # as small as it may be; by default 25
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(torch.distributed.get_rank()))
    model(images, torch.tensor([1, 500])).sample.square().mean().backward()
    return [parameter.grad for parameter in unet.parameters() if parameter.grad is not None], len(graphs)


def compare() -> None:
    torch.distributed.init_process_group("gloo")
    (plain, _), (compiled, graphs) = gradients_of(False), gradients_of(True)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(other, one)
    # Alone it is one graph, whose gradients all come at its end (tests/models/test_unet_2d.py). Here the weights are
    # 6 MiB, and torch cuts the graph where a bucket of gradients is full, so that their sum can begin.
    assert graphs >= 5
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gradients_are_added_up_while_a_compiled_network_still_computes_others() -> None:
    start_processes_of(2, compare)
