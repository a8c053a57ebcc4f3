"""The model that a run starts from, in the place of random weights: its settings, and its layers in this network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.launch import decided_by_main, each_on_its_own
from ddpm_hf.manifest import weights_hash
from ddpm_hf.models.embeddings import EmbeddingMLP
from ddpm_hf.models.network_sizes import FOLLOWING
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.models.unet_2d_config import heads_per_level, levels_with_attention, without_old_prefix
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.settings import plain, shown
from ddpm_hf.training.checkpoint_files import newest_complete
from ddpm_hf.training.downloads import local_folder
from ddpm_hf.training.idle import without_effect
from ddpm_hf.training.settings import Config, defaults_of

FREE = {"sample_size", "dropout", "num_class_embeds", "class_embed_type", "num_train_timesteps"}
"""Settings of the network that may differ: they change no layer, or only one that is compared anyway."""
OF_SAMPLES = {"timestep_spacing", "steps_offset"}
"""Settings of the process that say how it is sampled, not what is learned."""
SCHEDULE = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule"}
KNOWN_TO_ALL = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Noise schedules that are saved by name alone; beside others the config has their betas (schedulers/base.py)."""
PROCESS = (
    *("prediction_type", "beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps"),
    *("rescale_betas_zero_snr", "variance_type"),
)
"""Settings of the process that a network learns, the most telling first."""
NAMED = 3
"""Layers that a sentence names; the others are counted."""


@dataclass(frozen=True)
class BaseModel:
    """A model that a run may start from.

    Args:
        name: As it was given.
        id: Its id on the Hub; None of a folder.
        commit: That of the Hub; None of a folder.
        unet: Its network, in float32.
        process: The config of its scheduler.
    """

    name: str
    id: str | None
    commit: str | None
    unet: UNet2DModel
    process: Mapping[str, Any]

    def settings(self, config: Config, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        """Its settings of model and diffusion, for a run on images of ``(C, H, W)``, whose size the network takes.

        Raises:
            ValueError: the images have other channels, and nothing says what to do about it.
        """
        model = {key: value for key, value in self.unet.config.items() if key in defaults_of("model")}
        model = {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}
        process = {key: value for key, value in self.process.items() if key in defaults_of("diffusion")}
        process = {key: value for key, value in process.items() if key not in OF_SAMPLES}
        is_named = process.get("beta_schedule", "linear") not in KNOWN_TO_ALL
        if is_named or not SCHEDULE.isdisjoint(config.diffusion):
            process.pop("trained_betas", None)
        channels, height, width = shape
        model["sample_size"] = height if height == width else (height, width)
        if config.init_partial:
            variance_type = config.diffusion.get("variance_type", process.get("variance_type", "fixed_small"))
            outputs = 2 * channels if variance_type.startswith("learned") else channels
            model |= {"in_channels": channels, "out_channels": outputs}
        elif "model.in_channels" in inherited(config) and model["in_channels"] != channels:
            convert = "" if model["in_channels"] not in (1, 3) else f"--data.channels {model['in_channels']}, or "
            raise ValueError(
                f"the images have {channels} channel(s) and {self.name} has {model['in_channels']}; give {convert}"
                "--init_partial, with which its first and last layer start anew"
            )
        return {"model": model, "diffusion": process}


@dataclass(frozen=True)
class Start:
    """How a network began from a base model.

    Args:
        record: What is kept of that, in the types of JSON.
        notes: Sentences for the user.
    """

    record: dict[str, Any]
    notes: list[str]


def load_base_model(init_from: str, accelerator: Accelerator) -> BaseModel:
    """The model that ``ID_OR_FOLDER[@REVISION]`` names, of which all processes, which must all ask, get the same files.

    Raises:
        ValueError: it is not there, is no pipeline of a UNet2DModel, or is damaged, in one sentence.
    """
    found: list[DDPMCustomPipeline] = []
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # it reports a missing model in words of its own
    diffusers.utils.logging.disable_progress_bar()
    try:
        name, revision = decided_by_main(accelerator, lambda: _parts_of(init_from))
        folder, commit = local_folder(name, revision, accelerator)
        each_on_its_own(
            accelerator, lambda: found.append(DDPMCustomPipeline.from_pretrained(folder, dtype=torch.float32))
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"--init_from {init_from}: {error}") from error
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)
    [pipe] = found
    return BaseModel(init_from, name if commit else None, commit, pipe.unet, pipe.scheduler.config)


def _parts_of(init_from: str) -> tuple[str, str | None]:
    """A folder, or an id and a revision of the Hub."""
    folder = Path(init_from)
    if folder.exists():
        newest = None if (folder / "model_index.json").exists() else newest_complete(folder / "checkpoints")
        if newest is not None:
            raise ValueError(f"the run in that folder has not ended; give {newest}, its newest checkpoint")
        return init_from, None
    name, _, revision = init_from.partition("@")
    return name, revision or None


def settled(config: Config, followed: Mapping[str, Mapping[str, Any]]) -> Config:
    """The settings, with those of the network and the process that were not given from what they follow.

    Args:
        config: The settings that were given.
        followed: "model" and "diffusion" -> the settings of a base model, or those that a run has recorded.

    Raises:
        ValueError: they do not go together.
    """
    waiting = inherited(config)
    groups = {
        name: {**defaults_of(name), **followed[name]}
        | {key: value for key, value in given.items() if f"{name}.{key}" not in waiting}
        for name, given in {"model": config.model, "diffusion": config.diffusion}.items()
    }
    return replace(config, **groups)  # type: ignore[arg-type]


def inherited(asked: Config) -> set[str]:
    """Names of the settings of the network and the process that were not given."""
    groups = {"model": asked.model, "diffusion": asked.diffusion}
    absent = {f"{name}.{key}" for name, given in groups.items() for key in defaults_of(name).keys() - given}
    return absent | {f"model.{key}" for key in FOLLOWING if asked.model.get(key) is None}


def start_from(base: BaseModel, unet: UNet2DModel, asked: Config, config: Config) -> Start:
    """Give a network the weights of a base model.

    A layer fits if the base has one of that name whose tensors have the same shapes. Those that do not fit stay as they
    are, and need `init_partial`. But for the class embedding: where the base has none, its output starts at zero, so
    that the network begins as the base; where that has one of another shape, each class starts with the mean of its.

    Args:
        base: The base model.
        unet: The network, with the weights of its seed.
        asked: The settings that were given.
        config: Those that came of them.

    Raises:
        ValueError: layers, or settings that were given, do not fit and `init_partial` is not set; or nothing fits.
    """
    here, there = unet.state_dict(), base.unet.state_dict()
    is_class = {layer for layer in _layers(here) if layer.partition(".")[0] == "class_embedding"}
    remade = [layer for layer in _layers(here) if not _is_alike(here, there, layer)]
    left = [layer for layer in _layers(there) if layer not in _layers(here)]
    knows_classes = any(name.startswith("class_embedding.") for name in there)
    unfit = [layer for layer in remade if knows_classes or layer not in is_class]
    conflicts = _conflicts(base, asked, config)
    problems = [f"model.{key} is {shown(a)} here and {shown(b)} there" for key, (a, b) in conflicts.items()]
    if unfit:
        shapes = (f"{layer}: {_shapes(here, layer)} here, {_shapes(there, layer)} there" for layer in unfit)
        problems.append(f"{len(unfit)} of {len(_layers(here))} layers do not fit ({_first(shapes)})")
    if left:
        problems.append(f"{len(left)} layer(s) of it have no place here ({_first(left)})")
    if problems and not config.init_partial:
        raise ValueError(
            f"--init_from {base.name} is another network: {'; '.join(problems)}; leave out the settings that differ, "
            "or give --init_partial, with which layers that do not fit start anew"
        )
    kept = {name: there[name] for name in here if name.rpartition(".")[0] not in remade}
    if not kept:
        raise ValueError(f"--init_from {base.name} has no layer that fits this network; give settings more like its")
    unet.load_state_dict(kept, strict=False)
    if is_class & set(remade):
        _start_classes(unet, base)
    count, total = (sum(tensor.numel() for tensor in state.values()) for state in (kept, here))
    notes = _notes(base, config, is_class & set(remade), knows_classes)
    if problems:
        notes.insert(
            0, f"{base.name} is another network: {'; '.join(problems)}; {count:,} of {total:,} weights are its"
        )
    record = {
        "id": base.id,
        "commit": base.commit,
        "weights_sha256": weights_hash(base.unet),
        "weights": total,
        "weights_kept": count,
        "layers_made_anew": remade,
        "layers_left_out": left,
    }
    return Start(record, notes)


def _layers(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in state))


def _of_layer(state: Mapping[str, Tensor], layer: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name.rpartition(".")[0] == layer}


def _is_alike(here: Mapping[str, Tensor], there: Mapping[str, Tensor], layer: str) -> bool:
    return _of_layer(here, layer) == _of_layer(there, layer)


def _shapes(state: Mapping[str, Tensor], layer: str) -> str:
    shapes = _of_layer(state, layer)
    return " x ".join(map(str, next(iter(shapes.values())))) if shapes else "none"


def _first(names: Iterable[str]) -> str:
    found = list(names)
    more = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
    return ", ".join([*found[:NAMED], *more])


def _conflicts(base: BaseModel, asked: Config, config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that were given and differ from those of the base, and both values."""
    here, there = plain(config.model), plain({**defaults_of("model"), **base.unet.config})
    ours, theirs = _in_full(here), _in_full(there)
    aside = inherited(asked) | without_effect(config).keys() | {f"model.{key}" for key in FREE}
    given = [key for key in asked.model if f"model.{key}" not in aside]
    return {key: (here[key], there[key]) for key in given if here[key] != there[key] and ours[key] != theirs[key]}


def _in_full(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network such that two are equal if they mean the same."""
    full: dict[str, Any] = {
        key: list(value) if isinstance(value, list | tuple) else value for key, value in model.items()
    }
    for key in ("down_block_types", "up_block_types"):
        full[key] = [without_old_prefix(block) for block in full[key]]
    full["time_embedding_dim"] = full["time_embedding_dim"] or 4 * full["block_out_channels"][0]
    full["time_proj_dim"] = full["time_proj_dim"] or full["block_out_channels"][0]
    full["attention_head_dim"] = _heads(full)
    full["act_fn"] = {"swish": "silu"}.get(full["act_fn"].lower(), full["act_fn"].lower())
    return full


def _heads(model: Mapping[str, Any]) -> list[int | None]:
    """How many channels a head has on each level; None where a level has no attention."""
    levels = zip(model["block_out_channels"], heads_per_level(model), levels_with_attention(model), strict=True)
    return [(head or channels) if attends else None for channels, head, attends in levels]


@torch.no_grad()
def _start_classes(unet: UNet2DModel, base: BaseModel) -> None:
    """Let a class embedding that is new begin the same for each class."""
    ours, theirs = unet.class_embedding, base.unet.class_embedding
    if isinstance(ours, torch.nn.Embedding):
        if isinstance(theirs, torch.nn.Embedding) and theirs.embedding_dim == ours.embedding_dim:
            ours.weight.copy_(theirs.weight.mean(dim=0))
        else:
            ours.weight.zero_()
    elif isinstance(ours, EmbeddingMLP) and theirs is None:  # two layers of zeros would learn nothing
        for parameter in ours.linear_2.parameters():
            parameter.zero_()


def _notes(base: BaseModel, config: Config, new_classes: set[str], knows_classes: bool) -> list[str]:
    notes = []
    if new_classes:
        how = "with the mean of all its vectors" if knows_classes else "at zero, so that the network begins as the base"
        notes.append(f"the class embedding is not that of {base.name}; each class starts {how}")
    before = {**defaults_of("diffusion"), **base.process}
    if before["beta_schedule"] not in KNOWN_TO_ALL and config.diffusion["trained_betas"] is None:
        before["trained_betas"] = None
    idle, now = without_effect(config), config.diffusion
    pairs = {key: (before[key], now[key]) for key in PROCESS if f"diffusion.{key}" not in idle}
    if not any(kind.startswith("learned") for kind in pairs["variance_type"]):
        del pairs["variance_type"]  # only samplers know of it
    differing = [f"{key} {shown(old)}, now {shown(new)}" for key, (old, new) in pairs.items() if old != new]
    if differing:
        notes.append(
            f"{base.name} was trained with another process ({'; '.join(differing)}), so at first its outputs are wrong "
            "for this one"
        )
    return notes
