"""What a launcher gave this process: its share of the work, its threads, its precision, and the signal to stop."""

import ctypes
import gc
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor

from ddpm_hf.progress import Progress
from ddpm_hf.signals import say, stop_signals
from ddpm_hf.transfers import Fetched

T = TypeVar("T")

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Variables in which launchers say which of the processes one is."""

THREADS_PER_CORE = 4
"""More threads than that stand in each other's way so much that a run seems to stand still."""

SECONDS_OF_SILENCE = 20
"""How long processes wait for one another before they say so."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's malloc.h: how much free memory it keeps, and from what size on it asks the kernel each time."""


MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory a container may use, in its two versions."""


def start_processes(
    threads: int | None,
    gradient_accumulation_steps: int = 1,
    trackers: Sequence[str] = (),
    logging_dir: Path | None = None,
) -> Accelerator:
    """The accelerator of this process, on the CPU where there is nothing else, with its number of threads set.

    Float32 is exact from here on, on a GPU too; training may allow TF32.

    Args:
        threads: CPU threads of this process; None for the usable cores over the processes of this machine. (The
            launcher sets OMP_NUM_THREADS=1 by itself, which would leave all other cores idle.)
        gradient_accumulation_steps: Backward passes per optimizer step.
        trackers: Names that accelerate knows; metrics go there too.
        logging_dir: Where trackers write their files.

    Raises:
        ValueError: the launcher was asked for more processes than work together, or for a precision that the device
            lacks, or a tracker is not installed, or there are far more threads than cores.
    """
    most = max(16, THREADS_PER_CORE * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise ValueError(f"threads is {threads}, and this machine has {os.cpu_count()} cores; give at most {most}")
    check_launcher()
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise ValueError(f"the tracker {tracker!r} is not installed; run 'pip install {tracker}'")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "fp16", "bf16"):
        raise ValueError(f"mixed precision {precision!r} is not known here; ask the launcher for no, fp16 or bf16")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    waiting = threading.Timer(SECONDS_OF_SILENCE, print, [_waiting(asked)], {"file": sys.stderr})
    waiting.daemon = True
    if asked > 1:
        waiting.start()
    # Only with cpu=True do processes that a GPU launcher started find each other on a machine without one.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=gradient_accumulation_steps,
        log_with=list(trackers) or None,
        project_dir=logging_dir,
    )
    waiting.cancel()
    if unusable := set(trackers).difference(map(str, accelerator.log_with)):
        raise ValueError(
            f"accelerate cannot use the installed version of the tracker {unusable.pop()!r}; install one that it can, "
            "or take it out"
        )
    if asked != accelerator.num_processes:
        raise ValueError(
            f"the launcher started {asked} processes, but this one sees {accelerator.num_processes}, so they would "
            "overwrite each other's files; start them with 'accelerate launch --multi_gpu --num_processes N'"
        )
    # The one trace that 'accelerate launch --cpu --num_processes N' leaves of N, which it then ignores.
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if launched_on_cpu and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "'accelerate launch --cpu' starts one process whatever number it is given; for N processes on the CPU use "
            "'accelerate launch --multi_gpu --num_processes N', also without a GPU; for one give --num_processes 1"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed keeps the optimizer where these checkpoints do not reach; use "
            "configs/accelerate/fsdp_zero2.yaml for its ZeRO stage 2, or configs/accelerate/fsdp.yaml for stage 3"
        )
    if accelerator.mixed_precision != "no" and not accelerator.native_amp:
        raise ValueError(
            f"mixed precision {accelerator.mixed_precision} is not for a {accelerator.device.type}, where accelerate "
            "would train in float32 under its name; ask the launcher for bf16, or for no"
        )
    allow_tf32(False)
    torch.set_num_threads(threads or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products on NVIDIA GPUs may be rounded to 10 bits of mantissa. (Torch lets convolutions, by
    default.)"""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within the context float32 is float32, whatever a run allows for its own network."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def check_launcher() -> None:
    """See that the launcher's variables are a launcher's, or the first look for the other processes would never end.

    Raises:
        ValueError: they speak of other processes and not which of them this one is.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 1:
        raise ValueError(
            f"the environment variable WORLD_SIZE is {world!r} and must be a number of processes; unset it"
        )
    ranks = [name for name in RANKS if name in os.environ]
    if int(world) > 1 and not ranks:
        raise ValueError(
            f"the environment variable WORLD_SIZE is {world}, but no launcher started this process (there is no RANK); "
            f"unset it for one process, or start all with 'accelerate launch --multi_gpu --num_processes {world}'"
        )
    for name in ranks:
        rank = os.environ[name]
        if not rank.isdecimal() or int(rank) >= int(world) > 1:
            raise ValueError(f"the environment variable {name} is {rank!r} and must be below WORLD_SIZE, {world}")


def _waiting(processes: int) -> str:
    place = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '29500')}"
    rank = os.environ.get("RANK", "?")
    return f"Note: process {rank} still waits for the others of {processes} to come to {place}."


def keep_freed_memory() -> None:
    """Let this process keep the memory of a freed tensor for the next one, where the C library is glibc.

    By default it goes back to the kernel, which must clear it, page by page, when the next step asks for as much. That
    is some percent of a training step (docs/benchmarks.md, allocator). The peak stays the same.
    """
    if platform.libc_ver()[0] == "glibc":
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)


def batches_of(items: range, batch_size: int) -> list[range]:
    """Batches cut one after the other from all items, so that they do not depend on the number of processes."""
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def own_share(batches: Sequence[range], accelerator: Accelerator | None) -> Sequence[range]:
    """The batches of this process: the processes take them in turn. All of them where there is no accelerator."""
    return batches if accelerator is None else batches[accelerator.process_index :: accelerator.num_processes]


def decided_by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What the main process finds, on all processes, which must all ask: each might find disk or network otherwise.

    Args:
        accelerator: The processes.
        decide: Called on the main process alone. Nothing in it may wait for the others.

    Raises:
        Exception: on all of them, what ``decide`` raised.
    """
    if accelerator.num_processes == 1:
        return decide()
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = decide()
        except Exception as error:  # whatever it is, the others wait to hear of it
            found[1] = error
    found = broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    decided: T = found[0]
    return decided


def each_on_its_own(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Work in which no process waits for another. At its end all know whether it went well everywhere.

    Args:
        accelerator: The processes, which must all call this.
        work: The part of this process.

    Raises:
        Exception: on all of them, what was raised on the first process on which anything was.
    """
    failure = None
    try:
        work()
    except Exception as error:  # whatever it is, the others will wait for this process
        failure = error
    for failed in gather_object([failure]):
        if failed is not None:
            raise failed


def compute_in_shares(
    compute: Callable[[range], Tensor],
    num_items: int,
    batch_size: int,
    accelerator: Accelerator | None = None,
    *,
    in_step: bool = False,
    progress: str | None = None,
) -> Tensor:
    """A row of numbers for each item, computed in batches that all processes share, and the same on each of them.

    Any number of processes computes the same batches, and so the same bits.

    Args:
        compute: From the indices of a batch of ``b`` items to their rows, ``(b, ...)``. A process without a batch of
            its own computes the first one, to know the shape.
        num_items: How many there are, 1 or more; the same on every process.
        batch_size: How many are computed at once.
        accelerator: Its processes share the work; None for this process alone.
        in_step: Call ``compute`` equally often on all processes, because they must meet in it. What is computed for
            that alone is thrown away.
        progress: The name under which this process tells how far all are; None for silence.

    Returns:
        ``(num_items, ...)`` on the CPU.
    """
    batches = batches_of(range(num_items), batch_size)
    own = own_share(batches, accelerator)
    processes = accelerator.num_processes if accelerator else 1
    calls = math.ceil(len(batches) / processes) if in_step else max(1, len(own))
    padded = [*own, *[batches[0]] * (calls - len(own))]
    rows: Tensor | None = None
    with Progress(progress or "", num_items, "image", shown=progress is not None, leave=False) as told:
        for number, batch in enumerate(padded):
            part = compute(batch)
            if rows is None:
                rows = part.new_zeros(num_items, *part.shape[1:])
            if number < len(own):
                rows[batch.start : batch.stop] = part
            told.advance(len(batch) * processes)
    assert rows is not None
    if accelerator is not None and processes > 1:
        # Each row is zero on all processes but one, and so is each of its bytes: their sums are the row of any type,
        # also of one that the processes cannot add, such as uint16.
        own_bytes = rows.to(accelerator.device).view(torch.uint8)
        rows = accelerator.reduce(own_bytes, reduction="sum").view(rows.dtype)
    return rows.cpu()


def differences_from_launcher(accelerator: Accelerator) -> list[str]:
    """Requests of the launcher that the run does not fulfil, a sentence each."""
    has = accelerator.distributed_type.value
    found = []
    for variable, strategy in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")):
        if os.environ.get(variable, "").lower() == "true" and has != strategy:
            found.append(f"the launcher asked for {strategy}; this run has {has}, which shards nothing")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", accelerator.mixed_precision)
    if precision != accelerator.mixed_precision:
        found.append(f"the launcher asked for mixed precision {precision}; this run has {accelerator.mixed_precision}")
    return found


def usable_cores() -> int:
    """The cores that this process may use, which in a container or a batch job can be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or microseconds of CPU time in a period of as many
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def usable_memory() -> int:
    """The bytes of memory, with swap, that all processes here may use: the machine's, or the container's limit."""
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    for file in map(Path, MEMORY_LIMITS):
        limit = file.read_text().strip() if file.exists() else ""
        memory = min(memory, int(limit)) if limit.isdigit() else memory
    return int(memory)


def end_processes(accelerator: Accelerator) -> None:
    """Close trackers and the process group; nothing of the caller's may hold a prepared network any more.

    What reduces the network's gradients holds the process group too. Were it the last to let it go, it would do so with
    Python's lock, and torch 2.13 then waits for ever for a thread of gloo that wants that lock.
    """
    accelerator.free_memory()
    gc.collect()  # the network is part of circles
    accelerator.end_training()


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run depends on besides its settings: machine, versions, processes, threads, commit."""
    packages = ("torch", "diffusers", "accelerate", "datasets", "numpy")
    checkout = Path(__file__).parents[1]
    commit = None
    if (checkout / ".git").exists():
        git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "distributed_type": accelerator.distributed_type.value,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "commit": commit,
        **{package: version(package) for package in packages},
    }


class StopSignal:
    """Whether a signal has asked for an end, so that a run can finish its step and save.

    Args:
        accelerator: A signal to one of its processes stops them all.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received = False
        self._asked: Fetched | None = None
        self._would_wait = accelerator.device.type != "cpu"

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within the context signals, however many, are only remembered; so none breaks the save that follows."""

        def keep(number: int, frame: FrameType | None) -> None:
            if not self._received:
                say(f"Note: {signal.Signals(number).name}: the step ends and is saved (SIGQUIT ends at once).")
            self._received = True

        in_main_thread = threading.current_thread() is threading.main_thread()  # only there do signals arrive
        before = {number: signal.getsignal(number) for number in stop_signals() if in_main_thread}
        for number in before:
            signal.signal(number, keep)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, at_once: bool = True) -> bool:
        """Whether any process has received one: the same answer on all of them, which must all ask, and alike.

        Args:
            at_once: False may give the answer to the question before, so that the host need not wait for its device to
                have this one. (On the CPU it is at hand.)
        """
        if self._accelerator.num_processes == 1:
            return self._received
        before, self._asked = self._asked, None
        count = torch.full((), float(self._received), device=self._accelerator.device)  # filled there, and not copied
        count = self._accelerator.reduce(count, reduction="sum")
        if at_once or not self._would_wait:
            return bool(count > 0)
        self._asked = Fetched(count)
        return before is not None and bool(before.get() > 0)
