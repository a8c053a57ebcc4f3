"""``metrics.jsonl``: what a run measured of itself, a line for every few steps."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import xxhash
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.files import written_whole
from ddpm_hf.launch import decided_by_main
from ddpm_hf.training.dispensable import Dispensable

QUARTERS = 4


class MetricsLog:
    """Means over the steps since the last line, written by the main process to the file and to the trackers.

    Losses stay on the device until a line is due, so that logging does not make a GPU wait at every step.

    Args:
        path: The file.
        accelerator: Its processes' losses are averaged.
        images_per_step: The global batch size.
        num_train_timesteps: T, whose quarters have a mean loss each.
        after: Steps done before this run resumed; later lines are removed. 0 starts a new file.
        pending: :meth:`state_dict` of that run.
        written: `hash` of that run; None of a run of an earlier version.

    Attributes:
        notes: Sentences about lines of that run which are damaged.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        images_per_step: int,
        num_train_timesteps: int,
        after: int = 0,
        pending: list[list[float]] | None = None,
        written: str | None = None,
    ) -> None:
        self._path = path
        self._digest = xxhash.xxh3_128()
        self._size = 0  # of what is known to be in the file
        self._unwritten: list[bytes] = []
        self._dispensable = Dispensable(accelerator.is_main_process)
        self.notes: list[str] = []
        self._accelerator = accelerator
        self._images_per_step = images_per_step
        self._num_train_timesteps = num_train_timesteps
        self._rows: list[Tensor] = []  # of this process: sums of losses and of weights in each quarter of T
        self._steps: list[list[float]] = pending or []  # of all: the same, and the norm of the gradient or -1
        self._norms: list[float] = []
        self._since, self._timed_steps, self._waited = time.perf_counter(), 0, 0.0
        decided_by_main(accelerator, lambda: self._take_over(after, written))

    def add(self, losses: Tensor, t: Tensor, grad_norm: float | None, weights: Tensor | None = None) -> None:
        """Remember a step.

        Args:
            losses: Losses of this process's images, ``(b,)``.
            t: Their timesteps.
            grad_norm: The norm of the gradient before it was clipped; None if the step was skipped.
            weights: What each loss counts in the means; None for all alike.
        """
        weights = torch.ones_like(losses, dtype=torch.float32) if weights is None else weights
        row = torch.zeros(2, QUARTERS, device=losses.device)
        if grad_norm is not None:
            quarter = t * QUARTERS // self._num_train_timesteps
            row[0].index_add_(0, quarter, weights * losses.detach().float())
            row[1].index_add_(0, quarter, weights)
        self._rows.append(row)
        self._norms.append(-1.0 if grad_norm is None else grad_norm)
        self._timed_steps += 1

    def write(self, step: int, seconds_waited: float, **values: float) -> dict[str, Any]:
        """Write and return the means over the steps since the last line.

        Args:
            step: Steps done so far; the first step of a run is number 1.
            seconds_waited: Time spent so far on waiting for data, all in all.
            values: What else belongs to the line, such as the learning rate.
        """
        self._collect()
        taken = [row for row in self._steps if row[-1] >= 0]
        sums = [sum(column) for column in zip(*taken, strict=True)] or [0.0] * (2 * QUARTERS + 1)
        losses, counts = sums[:QUARTERS], sums[QUARTERS : 2 * QUARTERS]
        now = time.perf_counter()
        record: dict[str, Any] = {
            "step": step,
            "loss": _ratio(sum(losses), sum(counts)),
            **{f"loss_quarter_{i + 1}": _ratio(losses[i], counts[i]) for i in range(QUARTERS)},
            "grad_norm": _ratio(sums[-1], len(taken)),
            "skipped_steps": len(self._steps) - len(taken),
            "images_per_second": self._timed_steps * self._images_per_step / (now - self._since),
            "data_wait_share": (seconds_waited - self._waited) / (now - self._since),
            "memory_gib": _peak_memory(self._accelerator.device) / 2**30,
            **values,
        }
        self._steps, self._since, self._timed_steps, self._waited = [], now, 0, seconds_waited
        self.write_line(record)
        return record

    def write_line(self, record: dict[str, Any]) -> None:
        """Add a line to the file, and its numbers to the trackers."""
        if self._accelerator.is_main_process:
            self._write((json.dumps(record) + "\n").encode())
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        with self._dispensable.part("the trackers' numbers", Exception):  # whatever it is that they raise
            self._accelerator.log(numbers, step=record["step"])

    @property
    def hash(self) -> str:
        """Of all lines so far, on the main process."""
        return self._digest.hexdigest()

    def _write(self, line: bytes) -> None:
        """Add a line, and those before it that a full disk has kept from the file. Training does not end for it."""
        self._digest.update(line)
        self._unwritten.append(line)
        try:
            with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                file.truncate(min(self._size, file.seek(0, os.SEEK_END)))  # half a line may be there
                file.seek(0, os.SEEK_END)
                file.write(b"".join(self._unwritten))
        except OSError as error:
            if len(self._unwritten) == 1:  # said once
                reason = error.strerror or error
                print(f"Note: {self._path} cannot be written ({reason}); its lines wait in memory.", file=sys.stderr)
            return
        self._size += sum(map(len, self._unwritten))
        self._unwritten.clear()

    def _take_over(self, after: int, written: str | None) -> None:
        """Keep the lines of the steps before, and look whether they are those that were written."""
        kept = [line for line in read_log(self._path, self.notes) if line["step"] <= after] if after else []
        texts = [(json.dumps(line) + "\n").encode() for line in kept]
        if kept and kept[-1]["step"] == after and _hash_of(texts[:-1]) == written:
            texts.pop()  # the scores of the finished run, which come after its last save and are made again
        content = b"".join(texts)
        self._digest.update(content)
        self._size = len(content)
        if written is not None and self.hash != written:
            self.notes.append(f"{self._path} is not as it was at step {after}: lines are missing or were changed")
        with written_whole(self._path) as temporary:
            temporary.write_bytes(content)

    def state_dict(self) -> list[list[float]]:
        """The steps since the last line, in the types of JSON. All processes must ask."""
        self._collect()
        return self._steps

    def _collect(self) -> None:
        """Bring what the device holds to the host, summed over all processes."""
        if self._rows:
            rows = self._accelerator.reduce(torch.stack(self._rows), reduction="sum").flatten(1).tolist()
            self._steps += [[*row, norm] for row, norm in zip(rows, self._norms, strict=True)]
            self._rows, self._norms = [], []


def read_log(path: Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """The lines of a file, without those that cannot be read.

    Args:
        path: The file.
        notes: Takes a sentence for each such line, but for one that a killed process left unfinished.
    """
    lines = []
    content = path.read_bytes() if path.exists() else b""
    for number, text in enumerate(content.splitlines(keepends=True), start=1):
        try:
            line = json.loads(text)
            is_line = isinstance(line, dict) and isinstance(line.get("step"), int)
        except ValueError:
            is_line = False
        if is_line:
            lines.append(line)
        elif notes is not None and text.endswith(b"\n"):
            notes.append(f"line {number} of {path} cannot be read and is left out")
    return lines


def _hash_of(texts: Sequence[bytes]) -> str:
    return xxhash.xxh3_128(b"".join(texts)).hexdigest()


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None


def _peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: of the accelerator, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # psutil knows no peak where there is this
    except ImportError:  # Windows
        used = psutil.Process().memory_info()
        return int(getattr(used, "peak_wset", used.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
