"""The device: its precisions, a clock that waits for it, what it can do at best, and what a call asks of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.sizes import Sizes

PRECISIONS = ("float32", "tf32", "bf16")
"""`bf16` is autocast over float32 weights; what it leaves in float32 may then be TF32."""


def the_device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Products and convolutions of float32 as one of `PRECISIONS` has them; the forward pass wants `autocast` too."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if name == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Round a forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def synchronize() -> None:
    """Wait until the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], repeats: int = 1) -> float:
    """Milliseconds of one call in the mean of some on end, without waiting in between."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return 1000 * (time.perf_counter() - start) / repeats


def repeats_for(call: Callable[[], Any], seconds: float) -> int:
    """How many calls take about so long; the call is warm after it."""
    timed(call, 2)
    return max(1, round(1000 * seconds / timed(call)))


def error_of(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64 on the CPU."""
    a, b = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """The most that tensors hold at any time of a call; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    call()
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    synchronize()
    return torch.cuda.max_memory_allocated()


def ceilings(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """TFLOP/s of a large product of random numbers in each precision, and GB/s of a large copy (read and written)."""
    found = {}
    for name in PRECISIONS:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = (torch.randn(sizes.product, sizes.product, device=device).to(dtype) for _ in range(2))
        with precision(name):
            found[f"{name}_tflops"] = 2 * sizes.product**3 / best_ms(partial(torch.mm, a, b)) / 1e9
    source = torch.randint(256, (sizes.copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gbs"] = 2 * sizes.copied / best_ms(partial(target.copy_, source)) / 1e6
    return found


def best_ms(call: Callable[[], Any], rounds: int = 5, repeats: int = 5) -> float:
    """Of some rounds."""
    timed(call, 3)
    return min(timed(call, repeats) for _ in range(rounds))


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that each operation reads and writes, views and empty tensors apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "detach", "new_empty", "_unsafe_view")):
            tensors = {id(x): x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
            self.bytes += sum(x.numel() * x.element_size() for x in tensors.values())
        return result


def demands(call: Callable[[], Any]) -> dict[str, float]:
    """TFLOP of a call's convolutions and products, and the GB that its operations move, each on its own."""
    with FlopCounterMode(display=False) as counter:
        call()
    with _Traffic() as traffic:
        call()
    return {"tflop": counter.get_total_flops() / 1e12, "gb": traffic.bytes / 1e9}


def kernels(call: Callable[[], Any], most: int = 14) -> dict[str, Any]:
    """How long the device is busy in a call, and with what: the longest kernels; nothing on a CPU."""
    if not torch.cuda.is_available():
        return {}
    timed(call, 2)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        timed(call)
    times: dict[str, tuple[float, int]] = {}
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            total, count = times.get(event.name, (0.0, 0))
            times[event.name] = total + event.self_device_time_total / 1000, count + 1
    whole = sum(ms for ms, _ in times.values())
    first = sorted(times.items(), key=lambda item: -item[1][0])[:most]
    longest = [{"kernel": name[:160], "ms": ms, "share": ms / whole, "count": count} for name, (ms, count) in first]
    return {"busy_ms": whole, "count": sum(count for _, count in times.values()), "kernels": longest}
