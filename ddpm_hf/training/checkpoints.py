"""Checkpoints of a run: each one complete or not there, a pipeline folder for everyone, and all that a step changes.

checkpoints/step-500/
    model_index.json, scheduler/, unet/     the pipeline of the averaged weights; further averages as variants
    training/weights.safetensors            the weights themselves
    training/averages.safetensors           averages of what no pipeline has, as "decay/parameter", and those of
                                            relative lengths, as "sigma_rel LENGTH/parameter", if anything
    training/optimizer.safetensors          its moments, as "parameter/name"
    training/timesteps.safetensors          what the choice of timesteps has learnt, where it learns
    training/state.json                     the step, the rest of the state, size and hash of every file, its own too
"""

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.files import remove, remove_temporaries, sealed, sync, sync_tree, written_whole
from ddpm_hf.launch import decided_by_main
from ddpm_hf.models.unet_2d import TRAINING_ONLY, UNet2DModel
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.pixels import EIGHT_BITS, PixelFormat
from ddpm_hf.training.checkpoint_files import (
    READ_BY_RESUME,
    STATE,
    described_files,
    read_state,
    step_of,
    what_is_broken,
)
from ddpm_hf.training.ema import EMA

TIMESTEPS = Path("training", "timesteps.safetensors")
AVERAGES = Path("training", "averages.safetensors")


@dataclass
class TrainingState:
    """All that a training step changes.

    Args:
        unet: The network; its parameters may be sharded (``fully_shard``).
        optimizer: Optimizer of the network's parameters.
        ema: Averages of the parameters.
        timesteps: How timesteps are drawn.
        scaler: Scaler of the loss; in float16 only.
        step: Steps done.
        skipped: Steps skipped so far, because the gradient was not finite.
        skipped_in_a_row: Steps skipped since the last one that was taken.
        best: Scores and step of the best evaluation so far.
    """

    unet: UNet2DModel
    optimizer: Any
    ema: EMA
    timesteps: TimestepSampler
    scaler: Any = None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict[str, float] | None = None

    def count_step(self, taken: bool) -> None:
        """Count a step, taken or skipped."""
        self.step += 1
        self.skipped += not taken
        self.skipped_in_a_row = 0 if taken else self.skipped_in_a_row + 1

    def numbers(self) -> dict[str, Any]:
        """The part of the state that is not tensors, in the types of JSON."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "ema_updates": self.ema.num_updates,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }


@dataclass(frozen=True)
class Gathered:
    """The tensors of a state, whole and on the CPU.

    Args:
        weights: Name -> weights.
        averages: Decay -> name -> averaged weights.
        beside: Averages that no pipeline has, by their names in the file.
        moments: "parameter/name" -> state of the optimizer.
    """

    weights: dict[str, Tensor]
    averages: dict[float, dict[str, Tensor]]
    beside: dict[str, Tensor]
    moments: dict[str, Tensor]


AFTER_NOT_FINITE = (
    "the same command goes on from the newest of these and may end in the same way; a new run with a lower "
    "training.learning_rate or a longer training.warmup_steps may not"
)


class NotFinite(FloatingPointError):
    """A weight, average or moment is not a finite number, so that nothing can be learnt or drawn from here on."""


class SaveError(Exception):
    """A checkpoint could not be written; those before it are intact."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        limit: How many are kept.
        accelerator: Its main process writes; all of them must call :meth:`save`.
        pixels: What the numbers of the images mean, for the pipelines.
    """

    def __init__(self, folder: Path, limit: int, accelerator: Accelerator, pixels: PixelFormat = EIGHT_BITS) -> None:
        self.folder = folder
        self._limit = limit
        self._accelerator = accelerator
        self._pixels = pixels

    def find(self, resume: str) -> tuple[Path | None, list[str]]:
        """The checkpoint to resume from, the same on all processes, and a sentence for each broken one that is ignored.

        Args:
            resume: "auto" (the newest complete one here, if any), "never", or the path of one.

        Raises:
            ValueError: the path is not that of an intact checkpoint, or newer ones are here; or there are some, and
                none is intact.
        """
        if resume == "never":
            return None, []
        if resume == "auto":
            return decided_by_main(self._accelerator, self._newest_or_none)
        return decided_by_main(self._accelerator, lambda: self._named(Path(resume), resume))

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest intact checkpoint here, if any, and a sentence for each newer one that is damaged.

        All processes must ask.
        """
        return decided_by_main(self._accelerator, self._newest)

    def _newest(self) -> tuple[Path | None, list[str]]:
        """What :meth:`newest` answers."""
        notes: list[str] = []
        for path in reversed(self._all()):
            problem = what_is_broken(path, READ_BY_RESUME)
            if problem is None:
                beside = what_is_broken(path, check_content=False)
                return path, notes + ([f"{path} can be resumed from, though {beside}"] if beside else [])
            notes.append(f"{path} is damaged ({problem}) and is left aside")
        return None, notes

    def _newest_or_none(self) -> tuple[Path | None, list[str]]:
        path, notes = self._newest()
        if path is None and notes:
            raise ValueError(
                f"no checkpoint in {self.folder} is intact, and a new run would replace them: {'; '.join(notes)}; "
                "restore the files, give another --output_dir, or start anew here with --resume never"
            )
        return path, notes

    def _named(self, path: Path, resume: str) -> tuple[Path, list[str]]:
        problem = what_is_broken(path, READ_BY_RESUME)
        if problem:
            raise ValueError(f"--resume {resume} is not a complete checkpoint ({problem}); give auto, never or another")
        newer = [other.name for other in self._all() if step_of(other) > step_of(path)]
        if newer:
            raise ValueError(
                f"{self.folder} holds newer checkpoints than {path} ({', '.join(newer)}); give another --output_dir to "
                "branch off there, or remove them"
            )
        return path, []

    def clear(self, everything: bool) -> None:
        """Remove unfinished checkpoints of a killed run and, if asked to, all checkpoints. On the main process only."""
        remove_temporaries(self.folder)
        for path in self._all() if everything else []:
            remove(path)

    def save(self, state: TrainingState, sampler: Any, record: dict[str, Any]) -> Path:
        """Write a checkpoint of the present step, whole or not at all, then remove those over the limit.

        Args:
            state: To save.
            sampler: The scheduler of the pipeline.
            record: What else to keep, in the types of JSON; :func:`load` gives it back.

        Raises:
            SaveError: it could not be written, on any process.
            NotFinite: a weight, average or moment is not a finite number; nothing was written.
        """
        target = self.folder / f"step-{state.step}"
        gathered = _gather(state)

        def write() -> None:
            check_finite(gathered.weights, gathered.moments, gathered.beside)  # save_pipeline looks at the averages
            self._write(target, state, sampler, record, gathered)

        try:
            decided_by_main(self._accelerator, write)
        except (OSError, SafetensorError, NotFinite) as problem:
            kept = [path.name for path in self._all() if what_is_broken(path, check_content=False) is None]
            intact = f"intact there: {', '.join(kept) or 'none'}"
            if isinstance(problem, NotFinite):
                raise NotFinite(
                    f"step {state.step} was not saved to {target}, as {problem}; {intact}; {AFTER_NOT_FINITE}"
                ) from problem
            reason = getattr(problem, "strerror", None) or problem  # without the path, which is said
            raise SaveError(
                f"step {state.step} could not be saved to {target} ({reason}); {intact}; mend the cause and start "
                "again to go on from the newest"
            ) from problem
        return target

    def _write(
        self, target: Path, state: TrainingState, sampler: Any, record: dict[str, Any], gathered: Gathered
    ) -> None:
        with written_whole(target) as partial:  # what has that name already is broken
            (partial / STATE).parent.mkdir(parents=True)
            save_pipeline(partial, state.unet, gathered.averages, sampler, self._pixels)
            save_file(gathered.weights, partial / "training" / "weights.safetensors")
            save_file(gathered.moments, partial / "training" / "optimizer.safetensors")
            if gathered.beside:
                save_file(gathered.beside, partial / AVERAGES)
            if state.timesteps.learns:
                save_file(state.timesteps.state_dict(), partial / TIMESTEPS)
            with ThreadPoolExecutor(1) as beside:
                files = beside.submit(described_files, partial)
                sync_tree(partial)  # the disk takes longer than the hashes, which are made meanwhile
                content = sealed({**state.numbers(), "record": record, "files": files.result()})
            (partial / STATE).write_text(json.dumps(content, indent=2) + "\n")
            sync(partial / STATE)
            sync((partial / STATE).parent)
        sync(self.folder)
        # Later ones are damaged, or the run would have gone on from them; it replaces them when it comes there.
        earlier = [path for path in self._all() if step_of(path) <= state.step]
        complete = [path for path in earlier if what_is_broken(path, check_content=False) is None]
        for path in complete[: -self._limit]:
            remove(path)

    def _all(self) -> list[Path]:
        """Folders with the name of a checkpoint, oldest first."""
        found = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=step_of)


def check_finite(*groups: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold a number that is not finite.

    Raises:
        NotFinite: naming the first one.
    """
    for name, tensor in (item for group in groups for item in group.items()):
        # A sum is finite only if all of its terms are. Where large ones overflow, each of them is looked at.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise NotFinite(f"{name} is no longer finite")


@torch.no_grad()
def restore(path: Path, state: TrainingState) -> None:
    """Put a checkpoint into ``state``, bit for bit, sharded or not.

    Raises:
        ValueError: the checkpoint is of another network or other averages, or cannot be read.
    """
    decays = list(state.ema.averages)
    try:
        numbers = read_state(path)
        weights = load_file(path / "training" / "weights.safetensors")
        moments = load_file(path / "training" / "optimizer.safetensors")
        timesteps = load_file(path / TIMESTEPS) if state.timesteps.learns else {}
        averages = {
            decay: dict(UNet2DModel.from_pretrained(path, subfolder="unet", variant=variant).named_parameters())
            for decay, variant in zip(decays, (None, *map(_variant, decays[1:])), strict=True)
        }
        beside_pipeline = load_file(path / AVERAGES) if (path / AVERAGES).exists() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error

    parameters = dict(state.unet.named_parameters())
    if {name: p.shape for name, p in parameters.items()} != {name: w.shape for name, w in weights.items()}:
        raise ValueError(f"the checkpoint {path} is of another network than the one of these settings")
    if any(_of_length(length, name) not in beside_pipeline for length in state.ema.by_length for name in parameters):
        raise ValueError(f"the checkpoint {path} is of other training.ema_sigma_rels than these settings")
    for decay, saved in averages.items():
        names = (name for name in parameters if name.startswith(TRAINING_ONLY))
        saved.update({name: beside_pipeline[f"{decay}/{name}"] for name in names})
    for i, (name, parameter) in enumerate(parameters.items()):
        _put(parameter, weights[name])
        for decay, saved in averages.items():
            _put(state.ema.averages[decay][i], saved[name])
        for length, tensors in state.ema.by_length.items():
            _put(tensors[i], beside_pipeline[_of_length(length, name)])
    for key, value in moments.items():
        parameter = parameters[key.rpartition("/")[0]]
        # Adam's count of steps is one number; the moments lie in memory as their parameter does.
        target = torch.zeros_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
        _put(target, value)
        state.optimizer.state[parameter][key.rpartition("/")[2]] = target
    if state.scaler and numbers["scaler"]:
        state.scaler.load_state_dict(numbers["scaler"])
    state.timesteps.load_state_dict(timesteps)
    state.ema.num_updates = numbers["ema_updates"]
    state.step, state.best = numbers["step"], numbers["best"]
    state.skipped, state.skipped_in_a_row = numbers["skipped"], numbers["skipped_in_a_row"]


def save_pipeline(
    folder: Path,
    unet: UNet2DModel,
    averages: dict[float, dict[str, Tensor]],
    sampler: Any,
    pixels: PixelFormat = EIGHT_BITS,
) -> None:
    """A pipeline folder of averaged weights.

    Args:
        folder: Made if it is not there.
        unet: For its config.
        averages: decay -> name -> tensor. The first is the pipeline's, each other one a variant: of 0.999 ``ema0_999``.
            Parameters for training only are left out.
        sampler: Its scheduler.
        pixels: What the numbers of its images mean.

    Raises:
        NotFinite: a weight is not a finite number.
    """
    check_finite(*averages.values())
    with torch.device("meta"):
        network = UNet2DModel.from_config(unet.config)
    for i, (decay, tensors) in enumerate(averages.items()):
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_ONLY)}
        network.load_state_dict(kept, assign=True)
        if i == 0:
            DDPMCustomPipeline(network, sampler, pixels.to_dict()).save_pretrained(folder)
        else:
            network.save_pretrained(folder / "unet", variant=_variant(decay))


def averages_of(state: TrainingState) -> dict[float, dict[str, Tensor]]:
    """Decay -> name -> the whole averaged tensor on the CPU. Of a sharded network all processes must ask."""
    return _named(state, state.ema.averages)


def averages_by_length(state: TrainingState) -> dict[float, dict[str, Tensor]]:
    """As :func:`averages_of`, relative length -> name -> tensor."""
    return _named(state, state.ema.by_length)


def _named(state: TrainingState, averages: Mapping[float, list[Tensor]]) -> dict[float, dict[str, Tensor]]:
    names = [name for name, _ in state.unet.named_parameters()]
    return {key: dict(zip(names, map(_whole, tensors), strict=True)) for key, tensors in averages.items()}


def _of_length(length: float, name: str) -> str:
    """The name of an averaged parameter in a checkpoint."""
    return f"sigma_rel {length}/{name}"


def _gather(state: TrainingState) -> Gathered:
    """All tensors of a state. Of a sharded network all processes must ask."""
    weights, moments = {}, {}
    for name, parameter in state.unet.named_parameters():
        weights[name] = _whole(parameter)
        for key, value in state.optimizer.state[parameter].items():
            moments[f"{name}/{key}"] = _whole(value)
    averages, by_length = averages_of(state), averages_by_length(state)
    beside = {
        f"{decay}/{name}": tensor
        for decay, tensors in averages.items()
        for name, tensor in tensors.items()
        if name.startswith(TRAINING_ONLY)
    }
    beside |= {
        _of_length(length, name): tensor for length, tensors in by_length.items() for name, tensor in tensors.items()
    }
    return Gathered(weights, averages, beside, moments)


def _variant(decay: float) -> str:
    """The name of an average's file; diffusers takes the part after a dot for the end of the name."""
    return f"ema{decay}".replace(".", "_")


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.detach()
    if isinstance(whole, DTensor):
        whole = whole.full_tensor()
    return whole.cpu().contiguous()


def _put(target: Tensor, saved: Tensor) -> None:
    """Copy a whole tensor into ``target``; of a sharded one, each process its part."""
    if isinstance(target, DTensor):
        on_device = saved.to(target.device)
        saved = distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(saved)
