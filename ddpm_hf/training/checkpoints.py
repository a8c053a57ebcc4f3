"""Checkpoints of a run: each one complete or not there, a pipeline folder for everyone, and all that a step changes.

checkpoints/step-500/
    model_index.json, scheduler/, unet/     the pipeline of the averaged weights; further averages as variants
    training/weights.safetensors            the weights themselves
    training/optimizer.safetensors          its moments, as "parameter/name"
    training/timesteps.safetensors          what the choice of timesteps has learnt, where it learns
    training/state.json                     the step, the rest of the state, and the size of every file here
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.files import remove, remove_temporaries, sync, sync_tree, written_whole
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.training.ema import EMA

STATE = Path("training", "state.json")
TIMESTEPS = Path("training", "timesteps.safetensors")


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


class SaveError(Exception):
    """A checkpoint could not be written; those before it are intact."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        limit: How many are kept.
        accelerator: Its main process writes; all of them must call :meth:`save`.
    """

    def __init__(self, folder: Path, limit: int, accelerator: Accelerator) -> None:
        self.folder = folder
        self._limit = limit
        self._accelerator = accelerator

    def find(self, resume: str) -> tuple[Path | None, list[str]]:
        """The checkpoint to resume from, the same on all processes, and a sentence for each broken one that is ignored.

        Args:
            resume: "auto" (the newest complete one here, if any), "never", or the path of one.

        Raises:
            ValueError: the path is not that of a complete checkpoint, or newer ones are here.
        """
        if resume == "never":
            return None, []
        if resume == "auto":
            problems = {path: what_is_broken(path) for path in reversed(self._all())}
            complete = (path for path, problem in problems.items() if problem is None)
            notes = [f"{path} is not complete ({why}) and is left aside" for path, why in problems.items() if why]
            found = broadcast_object_list([next(complete, None), notes])
            return found[0], found[1]
        path = Path(resume)
        problem = what_is_broken(path)
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
        """
        target = self.folder / f"step-{state.step}"
        weights, averages, moments = _gather(state)
        problem = None
        if self._accelerator.is_main_process:
            try:
                self._write(target, state, sampler, record, weights, averages, moments)
            except (OSError, SafetensorError) as error:
                problem = str(error)
        problem = broadcast_object_list([problem])[0]
        if problem:
            kept = [path.name for path in self._all() if what_is_broken(path) is None]
            raise SaveError(
                f"step {state.step} could not be saved to {target} ({problem}); intact there: "
                f"{', '.join(kept) or 'none'}; mend the cause and start again to go on from the newest"
            )
        return target

    def _write(
        self,
        target: Path,
        state: TrainingState,
        sampler: Any,
        record: dict[str, Any],
        weights: dict[str, Tensor],
        averages: dict[float, dict[str, Tensor]],
        moments: dict[str, Tensor],
    ) -> None:
        with written_whole(target) as partial:  # what has that name already is broken
            (partial / STATE).parent.mkdir(parents=True)
            save_pipeline(partial, state.unet, averages, sampler)
            save_file(weights, partial / "training" / "weights.safetensors")
            save_file(moments, partial / "training" / "optimizer.safetensors")
            if state.timesteps.learns:
                save_file(state.timesteps.state_dict(), partial / TIMESTEPS)
            paths = (path for path in sorted(partial.rglob("*")) if path.is_file())
            files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in paths}
            content = {**state.numbers(), "record": record, "files": files}
            (partial / STATE).write_text(json.dumps(content, indent=2) + "\n")
            sync_tree(partial)
        sync(self.folder)
        complete = [path for path in self._all() if what_is_broken(path) is None]
        for path in complete[: -self._limit]:
            remove(path)

    def _all(self) -> list[Path]:
        """Folders with the name of a checkpoint, oldest first."""
        found = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The steps that a checkpoint's name says."""
    return int(path.name.partition("-")[2])


def what_is_broken(path: Path) -> str | None:
    """Why ``path`` is not a complete checkpoint; None if it is one."""
    if not re.fullmatch(r"step-\d+", path.name) or not path.is_dir():
        return "no folder of that kind" if path.exists() else "there is no such folder"
    try:
        files = json.loads((path / STATE).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"its {STATE} is missing or cannot be read"
    for name, size in files.items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            return f"its {name} is missing" if found is None else f"its {name} has {found} bytes of {size}"
    return None


def record_of(path: Path) -> dict[str, Any]:
    """What was given to :meth:`Checkpoints.save` besides the state, with the step."""
    content = json.loads((path / STATE).read_text())
    return {**content["record"], "step": content["step"]}


@torch.no_grad()
def restore(path: Path, state: TrainingState) -> None:
    """Put a checkpoint into ``state``, bit for bit, sharded or not.

    Raises:
        ValueError: the checkpoint is of another network or other averages, or cannot be read.
    """
    decays = list(state.ema.averages)
    try:
        numbers = json.loads((path / STATE).read_text())
        weights = load_file(path / "training" / "weights.safetensors")
        moments = load_file(path / "training" / "optimizer.safetensors")
        timesteps = load_file(path / TIMESTEPS) if state.timesteps.learns else {}
        averages = {
            decay: dict(UNet2DModel.from_pretrained(path, subfolder="unet", variant=variant).named_parameters())
            for decay, variant in zip(decays, (None, *map(_variant, decays[1:])), strict=True)
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error

    parameters = dict(state.unet.named_parameters())
    if {name: p.shape for name, p in parameters.items()} != {name: w.shape for name, w in weights.items()}:
        raise ValueError(f"the checkpoint {path} is of another network than the one of these settings")
    for i, (name, parameter) in enumerate(parameters.items()):
        _put(parameter, weights[name])
        for decay, saved in averages.items():
            _put(state.ema.averages[decay][i], saved[name])
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


def save_pipeline(folder: Path, unet: UNet2DModel, averages: dict[float, dict[str, Tensor]], sampler: Any) -> None:
    """A pipeline folder of averaged weights.

    Args:
        folder: Made if it is not there.
        unet: For its config.
        averages: decay -> name -> tensor. The first is the pipeline's, each other one a variant: of 0.999 ``ema0_999``.
        sampler: Its scheduler.
    """
    with torch.device("meta"):
        network = UNet2DModel.from_config(unet.config)
    for i, (decay, tensors) in enumerate(averages.items()):
        network.load_state_dict(tensors, assign=True)
        if i == 0:
            DDPMCustomPipeline(unet=network, scheduler=sampler).save_pretrained(folder)
        else:
            network.save_pretrained(folder / "unet", variant=_variant(decay))


def averages_of(state: TrainingState) -> dict[float, dict[str, Tensor]]:
    """Decay -> name -> the whole averaged tensor on the CPU. Of a sharded network all processes must ask."""
    names = [name for name, _ in state.unet.named_parameters()]
    return {decay: dict(zip(names, map(_whole, tensors), strict=True)) for decay, tensors in state.ema.averages.items()}


def _gather(state: TrainingState) -> tuple[dict[str, Tensor], dict[float, dict[str, Tensor]], dict[str, Tensor]]:
    """Weights, averages and the optimizer's moments, whole and on the CPU."""
    weights, moments = {}, {}
    for name, parameter in state.unet.named_parameters():
        weights[name] = _whole(parameter)
        for key, value in state.optimizer.state[parameter].items():
            moments[f"{name}/{key}"] = _whole(value)
    return weights, averages_of(state), moments


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
