"""Processes and threads as the launcher gives them, and what is said where a run has others."""

import gc
import os
import platform
import resource
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import in_new_process
from ddpm_hf.launch import (
    StopSignal,
    allow_tf32,
    compute_in_shares,
    differences_from_launcher,
    environment,
    exact_float32,
    keep_freed_memory,
    start_processes,
    usable_cores,
)
from tests.runs import finished, start_processes_of


@pytest.fixture
def no_accelerator_yet() -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_usable_cores_are_shared_out_over_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    start_processes(None)
    assert torch.get_num_threads() == usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(usable_cores()))
    start_processes(None)
    assert torch.get_num_threads() == 1
    accelerator = start_processes(2)
    assert environment(accelerator)["threads_per_process"] == torch.get_num_threads() == 2


def float32() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("threads")
def test_float32_is_exact_unless_training_allows_other_products() -> None:
    """Torch's default rounds the convolutions of an NVIDIA GPU, and so what ddpm-hf-sample would call float32."""
    torch.backends.cudnn.allow_tf32 = True
    start_processes(1)
    assert float32() == ("highest", False)
    allow_tf32(True)
    assert float32() == ("high", True)
    with exact_float32():
        assert float32() == ("highest", False)
    assert float32() == ("high", True)
    allow_tf32(False)


def page_faults(is_kept: bool) -> int:
    """Of a tensor of 64 MiB, above what glibc would keep by itself, that is made and freed again and again."""
    if is_kept:
        keep_freed_memory()
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_stays_with_the_process() -> None:
    assert in_new_process(page_faults, True) < in_new_process(page_faults, False) / 4


@pytest.mark.usefixtures("threads")
def test_processes_that_do_not_work_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Accelerator(cpu=True)  # alone, before the launcher's variable appears
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="the launcher started 2 processes, but this one sees 1"):
        start_processes(None)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what 'accelerate launch --cpu --num_processes 2' leaves
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match="starts one process whatever number it is given"):
        start_processes(None)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE is 2, but no launcher started this process \(there is no RANK\); unset it"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' and must be a number of processes"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' and must be a number of processes"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2' and must be below WORLD_SIZE, 2"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1' and must be below WORLD_SIZE, 2"),
    ],
)
def test_variables_that_no_launcher_set_are_refused_in_place_of_a_wait(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        start_processes(None)


def test_more_threads_than_a_machine_can_use_are_refused_with_the_number_that_works() -> None:
    most = max(16, 4 * (os.cpu_count() or 1))
    for threads in (most + 1, 2000, 100_000):
        with pytest.raises(
            ValueError, match=f"threads is {threads}, and this machine has .* cores; give at most {most}"
        ):
            start_processes(threads)


@pytest.mark.usefixtures("no_accelerator_yet")
def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16 is not for a cpu, where accelerate would train in float32"):
        start_processes(None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="'fp8' is not known here"):
        start_processes(None)


def test_a_tracker_that_is_not_installed_is_named_with_its_command() -> None:
    with pytest.raises(ValueError, match=r"the tracker 'no_such_tracker' is not installed; run 'pip install no_such"):
        start_processes(1, trackers=["no_such_tracker"])


def test_a_run_that_has_less_than_the_launcher_was_asked_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    assert differences_from_launcher(accelerator) == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert differences_from_launcher(accelerator) == [
        "the launcher asked for FSDP; this run has NO, which shards nothing",
        "the launcher asked for mixed precision bf16; this run has no",
    ]


@pytest.fixture
def interrupts() -> Any:
    """SIGINT as Python has it; a shell's background job starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_signals_however_many_are_remembered_and_break_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignal(Accelerator(cpu=True))
    with stop.caught():
        assert not stop.agreed()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
            assert stop.agreed()
    assert capfd.readouterr().err == "Note: SIGINT: the step ends and is saved (SIGQUIT ends at once).\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_beside_a_device_a_stop_is_answered_at_the_next_question_or_at_once_where_that_is_asked_for() -> None:
    summed: list[torch.Tensor] = []

    def reduce(count: torch.Tensor, reduction: str) -> torch.Tensor:
        summed.append(count)
        return count

    def of(device: str) -> StopSignal:
        accelerator: Any = SimpleNamespace(num_processes=2, device=torch.device(device), reduce=reduce)
        stop = StopSignal(accelerator)
        stop._received = True
        return stop

    assert not of("meta").agreed(at_once=False)  # asked, and not read
    assert summed.pop().device.type == "meta"
    assert of("cpu").agreed(at_once=False)
    assert of("cpu").agreed()
    late = of("cpu")
    late._would_wait = True
    assert [late.agreed(at_once=False) for _ in range(3)] == [False, True, True]
    late._received = False
    assert [late.agreed(at_once=False) for _ in range(3)] == [True, False, False]
    late._received = True
    assert late.agreed()


def watch_the_end() -> None:
    """The process group must not end before the network that reduces gradients over it."""
    destroy = torch.distributed.destroy_process_group

    def checked(*group: Any) -> None:
        left = [kind for kind in map(type, gc.get_objects()) if issubclass(kind, DistributedDataParallel)]
        assert not left, "the network is still there"
        print("the network went first", flush=True)
        destroy(*group)

    torch.distributed.destroy_process_group = checked


def test_the_network_goes_before_the_process_group(tmp_path: Path) -> None:
    """Or a process may wait for ever at its end, once in some dozens of runs."""
    run = finished(tmp_path / "run", "--training.steps", 2, processes=2, fault=watch_the_end)
    assert run.with_name("run.said").read_text().count("the network went first") == 2


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_batches_and_each_row_is_computed_by_one(processes: int, in_step: bool) -> None:
    def row(item: int) -> torch.Tensor:
        return torch.tensor([[item, 1], [item**2, -1]], dtype=torch.float64)

    parts: list[torch.Tensor] = []
    called: list[list[range]] = []
    for rank in range(processes):

        def compute(batch: range) -> torch.Tensor:
            called[-1].append(batch)
            return torch.stack([row(item) for item in batch])

        def reduce(rows: torch.Tensor, reduction: str) -> torch.Tensor:
            parts.append(rows.view(torch.float64))
            return rows

        called.append([])
        place: Any = SimpleNamespace(
            process_index=rank, num_processes=processes, reduce=reduce, device=torch.device("cpu")
        )
        alone = compute_in_shares(compute, 11, 3, place, in_step=in_step)
    expected = torch.stack([row(item) for item in range(11)])
    assert torch.equal(sum(parts) if processes > 1 else alone, expected)
    cut = [range(0, 3), range(3, 6), range(6, 9), range(9, 11)]
    assert [batches[: len(cut[rank::processes])] for rank, batches in enumerate(called)] == [
        cut[rank::processes] for rank in range(processes)
    ]
    calls = [len(batches) for batches in called]
    assert calls == (
        [-(-4 // processes)] * processes if in_step else [max(1, len(cut[r::processes])) for r in range(processes)]
    )
    assert torch.equal(compute_in_shares(lambda batch: expected[batch.start : batch.stop], 11, 3), expected)


def write_rows(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    for name, dtype in (("deep", torch.uint16), ("half", torch.float16), ("grey", torch.uint8)):
        rows = (torch.arange(7 * 3).view(7, 3) * 3000 % 256**2).to(dtype)
        found = compute_in_shares(lambda batch, rows=rows: rows[batch.start : batch.stop], 7, 2, accelerator)
        assert found.dtype == dtype
        torch.save(torch.equal(found, rows), folder / f"{name}-{accelerator.process_index}.pt")


def test_processes_share_rows_of_types_that_they_cannot_add(tmp_path: Path) -> None:
    """Gloo has no sum of uint16."""
    start_processes_of(2, write_rows, tmp_path)
    found = [torch.load(path, weights_only=True) for path in tmp_path.iterdir()]
    assert found == [True] * 6
