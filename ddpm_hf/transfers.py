"""Ways to a device and back: on a CUDA device beside its work, so that neither it nor the host waits."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device.

    CUDA copies from memory that may be paged out through a buffer, and the host waits for that; from pinned memory,
    which torch keeps until the copy is done, it does not.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class SideStream:
    """A stream of CUDA for what need not wait for the network; on any other device nothing.

    Args:
        device: Where the tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def used(self) -> AbstractContextManager[Any]:
        """Within the context this thread's work on the device goes to the stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def catch_up(self) -> None:
        """Let the stream use what the present one has made so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def hand_over(self, tensors: Iterable[Tensor | None]) -> None:
        """Let the present stream use tensors that were made in this one. Only the device waits, if it must."""
        if self._stream is None:
            return
        user = torch.cuda.current_stream(self._stream.device)
        user.wait_stream(self._stream)
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(user)  # or its memory might be taken again while it is still read


class Fetched:
    """A tensor on its way to the host, which goes on meanwhile where the device is a CUDA device.

    Args:
        tensor: That of the device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._event = tensor, None
        if tensor.device.type == "cuda":
            self._tensor = tensor.to("cpu", non_blocking=True)  # into pinned memory
            self._event = torch.cuda.current_stream(tensor.device).record_event()

    def get(self) -> Tensor:
        """The tensor on the host, once it has come."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.cpu()
