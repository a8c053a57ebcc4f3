"""Snapshots of averages of relative lengths, and the averages of other lengths that they give afterwards.

averages/step-75.safetensors    the averages of a run after step 75, as "LENGTH/parameter", in float32

All of a run's snapshots are kept, because an average reaches back over the run as far as its length says. What bounds
their number is how seldom they are made, so which ones there are never depends on where a run was stopped or killed.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf.files import sync, written_whole
from ddpm_hf.models.unet_2d import TRAINING_ONLY
from ddpm_hf.training.power_functions import WORST, Profile, Vector, combination

FOLDER = "averages"
"""Of a run."""

CHECKED = np.geomspace(0.01, 0.25, 57).tolist()
"""Lengths that are tried to find out which are possible."""

_KEY = "snapshot"
"""The one entry of a file's metadata: several would be in another order each time."""


@dataclass(frozen=True)
class Snapshot:
    """A file of averages.

    Args:
        path: The file.
        step: Steps of the run.
        updates: Updates of the averages; skipped steps are none.
        sigma_rels: Their relative lengths.
    """

    path: Path
    step: int
    updates: int
    sigma_rels: tuple[float, ...]


@dataclass(frozen=True)
class Average:
    """An average of the time of the last snapshot, put together from all of them.

    Args:
        sigma_rel: Its relative length.
        snapshots: What it is made of, oldest first.
        factors: What each average of each snapshot is multiplied with, in their order.
        error: Relative error of its profile.
    """

    sigma_rel: float
    snapshots: tuple[Snapshot, ...]
    factors: Vector
    error: float

    def tensors(self) -> dict[str, Tensor]:
        """Name -> averaged weights, float32; sums are in float64.

        Raises:
            ValueError: a snapshot is damaged or of another network.
        """
        sums: dict[str, Tensor] = {}
        factors = iter(self.factors.tolist())
        for snapshot in self.snapshots:
            try:
                stored = load_file(snapshot.path)
            except (OSError, SafetensorError) as error:
                raise ValueError(_damaged(snapshot.path, error)) from error
            for length in snapshot.sigma_rels:
                prefix = f"{length}/"
                own = {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}
                sums = sums or {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in own.items()}
                if {name: total.shape for name, total in sums.items()} != {n: t.shape for n, t in own.items()}:
                    raise ValueError(f"{snapshot.path} is of another network than {self.snapshots[0].path}; remove it")
                factor = next(factors)
                for name, total in sums.items():
                    total.add_(own[name], alpha=factor)
        return {name: total.float() for name, total in sums.items()}


def save_snapshot(folder: Path, step: int, updates: int, averages: dict[float, dict[str, Tensor]]) -> None:
    """Write a snapshot, whole or not at all.

    Args:
        folder: The folder of the snapshots.
        step: Steps of the run.
        updates: Updates of the averages, at least 1.
        averages: Relative length -> name -> tensor on the CPU. Parameters for training only are left out.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {
        f"{length}/{name}": tensor
        for length, named in averages.items()
        for name, tensor in named.items()
        if not name.startswith(TRAINING_ONLY)
    }
    about = json.dumps({"step": step, "updates": updates, "sigma_rels": [*averages]})
    with written_whole(path_of(folder, step)) as temporary:
        save_file(tensors, temporary, metadata={_KEY: about})
        sync(temporary)


def path_of(folder: Path, step: int) -> Path:
    """The file of a step's snapshot."""
    return folder / f"step-{step}.safetensors"


def snapshots_in(folder: Path) -> list[Snapshot]:
    """Those of a folder, oldest first; none where there is no folder.

    Raises:
        ValueError: one is damaged, or is none.
    """
    return sorted(map(_read, _files_in(folder)), key=lambda snapshot: snapshot.step)


def clear_snapshots(folder: Path) -> None:
    """Remove all of them."""
    for path in _files_in(folder):
        path.unlink()


def copy_snapshots(source: Path, folder: Path, until: int) -> None:
    """Give a run that goes on from a checkpoint of another one the snapshots up to then, where it has none yet.

    Args:
        source: The other run's folder of snapshots; there may be none.
        folder: The run's.
        until: Steps that the checkpoint has.
    """
    for snapshot in snapshots_in(source):
        target = path_of(folder, snapshot.step)
        if snapshot.step <= until and not target.exists():
            with written_whole(target) as temporary:
                shutil.copyfile(snapshot.path, temporary)


def average_of(snapshots: Sequence[Snapshot], sigma_rel: float) -> Average:
    """The average of a relative length at the time of the last snapshot.

    Args:
        snapshots: Oldest first, at least one.
        sigma_rel: The length.

    Raises:
        ValueError: the length is out of range, or these snapshots do not give its profile to within `WORST`; the
            sentence says which lengths they do give.
    """
    average = _combined(snapshots, sigma_rel)
    if average.error <= WORST:
        return average
    lengths = sorted({length for snapshot in snapshots for length in snapshot.sigma_rels})
    of = " and ".join(f"{length:g}" for length in lengths)
    raise ValueError(
        f"an average of sigma_rel {sigma_rel:g} cannot be put together from {len(snapshots)} snapshot(s) of sigma_rel "
        f"{of}: its profile would be wrong by {average.error:.0%}, and {WORST:.0%} is allowed; they give lengths from "
        + " to ".join(f"{length:.2g}" for length in range_of(snapshots))
    )


def range_of(snapshots: Sequence[Snapshot]) -> tuple[float, float]:
    """The shortest and the longest average that these snapshots give, of lengths from 0.01 to 0.25."""
    stored = [length for snapshot in snapshots for length in snapshot.sigma_rels]
    possible = [length for length in CHECKED if _combined(snapshots, length).error <= WORST]
    return min(stored + possible), max(stored + possible)


def _combined(snapshots: Sequence[Snapshot], sigma_rel: float) -> Average:
    stored = [Profile(length, snapshot.updates) for snapshot in snapshots for length in snapshot.sigma_rels]
    factors, error = combination(stored, Profile(sigma_rel, snapshots[-1].updates))
    return Average(sigma_rel, tuple(snapshots), factors, error)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+\.safetensors", path.name)]


def _read(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_KEY])
        lengths = tuple(map(float, about["sigma_rels"]))
        return Snapshot(path, int(about["step"]), int(about["updates"]), lengths)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged, or no snapshot of averages ({error}); restore it, or remove it to do without"
