"""The files that ddpm-torch and ermongroup/ddim save: read without running code, written so that they are read there.

ddpm-torch          {"model": weights, "ema": {"shadow": average, "decay", "num_updates"}, "epoch", "optimizer", ...}
ermongroup/ddim     [weights, optimizer, epoch, step, average]
pytorch_diffusion   weights
OpenAI's            weights
"""

import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ddpm_hf.conversion.layout_tables import DDPM_TORCH, GUIDED_DIFFUSION, Layout
from ddpm_hf.conversion.layouts import WHY_NOT_EDM, Weights

TENSORFLOW_FILE: Final = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")
OF_NVIDIA: Final = b"torch_utils.persistence"
"""The module that NVIDIA's pickles name: it runs the source code that they hold."""
LOOKED_AT: Final = 65_536
"""Bytes at the beginning of a file in which they name it, as the network comes first."""

# What numpy's numbers, such as a score noted beside the weights, are pickled with; none of it runs code.
_MAKE_NUMBER: Final = np.float64(0).__reduce__()[0]
_NUMBERS: Final[list[Any]] = [
    (_MAKE_NUMBER, "numpy.core.multiarray.scalar"),
    (_MAKE_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]


@dataclass
class TrainedWeights:
    """What such a file holds of a network, under the project's names.

    Attributes:
        raw: the weights.
        average: their moving average, if it is there.
        notes: what else is known of them: epoch, step, ema_decay, ema_updates.
    """

    raw: Weights
    average: Weights | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def read_trained_weights(path: Path) -> TrainedWeights:
    """Read a file of either project.

    Raises:
        ValueError: for what is no such file, or not whole, in one sentence.
        FileNotFoundError: it is not there.
    """
    content = unpickle(path)
    if isinstance(content, list | tuple) and len(content) in (4, 5):
        average = tensors_of(content[4], path) if len(content) == 5 else None
        return TrainedWeights(tensors_of(content[0], path), average, {"epoch": content[2], "step": content[3]})
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return TrainedWeights(tensors_of(content, path))
    weights = TrainedWeights(tensors_of(content["model"], path))
    if "epoch" in content:
        weights.notes["epoch"] = content["epoch"]
    if "ema" in content:
        ema = content["ema"]
        if isinstance(ema, dict) and any(str(key).startswith("ema_model.") for key in ema):
            raise ValueError(
                f"{path} is a trainer's file of lucidrains' denoising-diffusion-pytorch, whose network is another one "
                "than UNet2DModel, so it cannot be converted"
            )
        if isinstance(ema, dict) and "shadow_params" in ema:
            raise ValueError(
                f"{path} is a checkpoint of score_sde_pytorch, whose networks are other ones than UNet2DModel, so it "
                "cannot be converted"
            )
        if not isinstance(ema, dict) or "shadow" not in ema:
            raise ValueError(f"{path} has an entry ema without the average (shadow) that ddpm-torch keeps there")
        weights.average = tensors_of(ema["shadow"], path)
        weights.notes |= {"ema_decay": ema.get("decay"), "ema_updates": ema.get("num_updates")}
    return weights


def as_saved(layout: Layout, weights: TrainedWeights) -> Any:
    """What `torch.save` writes for the project to sample from. The optimizer's state is not in it."""
    raw, average, notes = weights.raw, weights.average, weights.notes
    if layout is DDPM_TORCH:
        content: dict[str, Any] = {"model": raw, "epoch": notes.get("epoch", 0)}
        if average is not None:
            decay, updates = notes.get("ema_decay", 0.9999), notes.get("ema_updates", 0)
            content["ema"] = {"decay": decay, "shadow": average, "num_updates": updates}
        return content
    if average is None:
        return raw
    if layout.name == GUIDED_DIFFUSION.name:  # whose averages are files of their own, and are what is sampled from
        return average
    parallel = {f"module.{key}": tensor for key, tensor in raw.items()}
    return [parallel, {}, notes.get("epoch", 0), notes.get("step", 0), average]


def tensors_of(content: Any, path: Path) -> Weights:
    """Weights by name, without the prefix of a network that was trained on several devices.

    Raises:
        ValueError: `content`, which is of the file `path`, is something else.
    """
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds {type(content).__name__}, not a network's weights by name")
    strangers = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strangers:
        named = ", ".join(map(str, strangers[:3]))
        raise ValueError(
            f"{path} is of no layout that is known: {len(strangers)} of its entries are not weights ({named})"
        )
    kinds = sorted({str(tensor.dtype) for tensor in content.values()})
    if len(kinds) > 1 or not next(iter(content.values())).is_floating_point():
        raise ValueError(f"{path} holds weights of {', '.join(kinds)}, where one floating type is expected")
    return {key.removeprefix("module."): tensor.detach() for key, tensor in content.items()}


def unpickle(path: Path) -> Any:
    """What a file of torch.save holds, if that is tensors, numbers and containers only.

    Raises:
        ValueError: it holds more, or is not whole, in one sentence.
        FileNotFoundError: it is not there.
    """
    if TENSORFLOW_FILE.search(path.name) or path.with_name(f"{path.name}.index").exists():
        raise ValueError(
            f"{path} is a checkpoint of TensorFlow, which is not read here; pytorch_diffusion publishes Ho et al.'s "
            "models as .ckpt files, which are"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a checkpoint's file or a model's folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; copy it again")
    with path.open("rb") as file:
        if OF_NVIDIA in file.read(LOOKED_AT):
            raise ValueError(
                f"{path} is a pickle of NVIDIA's EDM or a sister of it, which holds its network's code and would run "
                f"it, so it is not read; {WHY_NOT_EDM}"
            )
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{found[1]}" if found else "an object of Python"
        raise ValueError(
            f"{path} holds more than tensors ({what}) or is no file of torch.save; loading it could run code, so it is "
            "not read: save its weights alone (a state_dict) where you trust it"
        ) from None
    except (RuntimeError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is no whole file of torch.save ({reason}); copy it again") from None
