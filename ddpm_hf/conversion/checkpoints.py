"""Checkpoints of other projects into pipeline folders, and back, with not one bit of a weight changed."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from ddpm_hf.conversion.layout_tables import GUIDED_DIFFUSION, GUIDED_DIFFUSION_NEW_ORDER, Layout
from ddpm_hf.conversion.layouts import (
    Weights,
    check_expressible,
    layout_of,
    to_ours,
    to_theirs,
    unet_config,
    unet_without_memory,
)
from ddpm_hf.conversion.openai_flags import PUBLISHED, guided_diffusion_flags
from ddpm_hf.conversion.pickles import TrainedWeights, as_saved, tensors_of, unpickle
from ddpm_hf.conversion.recipe_terms import ForeignRecipe
from ddpm_hf.conversion.recipes import ddpm_torch_recipe, ermongroup_recipe, read_recipe
from ddpm_hf.files import read_json, sha256_of, written_whole
from ddpm_hf.manifest import read_manifest, weights_hash, write_manifest
from ddpm_hf.model_folder import network_in, networks_below, only_variant, pickled_weights, variants_of
from ddpm_hf.models.noisy_classifier import NoisyClassifier
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.schedulers.ddpm import DDPMScheduler

RAW_VARIANT: Final = "non_ema"
"""The weights themselves beside their average, in the name that diffusers' own conversions gave them."""

HO_SCHEDULE: Final = "the noise schedule is Ho et al.'s (1000 steps, linear from 0.0001 to 0.02)"

_RAW_FILE: Final = f"diffusion_pytorch_model.{RAW_VARIANT}.safetensors"
_NEW_ORDER: Final = "use_new_attention_order"
_RECIPES: Final[dict[str, tuple[str, Callable[[Any, Any], str]]]] = {
    "ddpm-torch": (".json", ddpm_torch_recipe),
    "ermongroup-ddim": (".yml", ermongroup_recipe),
    "guided-diffusion": (".txt", guided_diffusion_flags),
}


@dataclass
class Checkpoint:
    """A network between two layouts.

    Attributes:
        unet: holds the weights that sampling uses, the average where there is one.
        scheduler: scheduler of the process it was trained on.
        raw: the weights that were averaged.
        source: description of its origin, for the manifest.
        notes: other facts that the weights do not hold, such as the epoch.
        assumed: settings that the source does not state, taken from Ho et al.
    """

    unet: UNet2DModel
    scheduler: Any
    raw: Weights | None = None
    source: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def read_checkpoint(
    path: Path,
    trained: TrainedWeights,
    recipe_path: Path | None = None,
    sample_size: int | None = None,
    norm_eps: float | None = None,
) -> Checkpoint:
    """A file that ddpm-torch, ermongroup/ddim, pytorch_diffusion or one of OpenAI's projects saved.

    Args:
        path: Path of the file.
        trained: What it holds.
        recipe_path: The settings that it was trained with, `recipes.read_recipe`.
        sample_size: Side of its images, where no recipe says it.
        norm_eps: Epsilon of the group norms, if it differs from that of the project's newest code.

    Raises:
        ValueError: for what is not such a file, or not wholly, in one sentence.
        OSError: it cannot be read.
    """
    recipe = None if recipe_path is None else read_recipe(recipe_path)
    sampled = trained.raw if trained.average is None else trained.average
    assumed = []
    try:
        layout = _layout(sampled, recipe, path)
        config = dict(recipe.model) if recipe and layout.needs_recipe else unet_config(layout, sampled)
        if recipe is None:
            if config["out_channels"] != config["in_channels"]:
                raise ValueError(
                    f"it has {config['out_channels']} output channels for {config['in_channels']}; give the --recipe "
                    "that says what they are"
                )
            assumed.append(HO_SCHEDULE)
        else:
            _check_same_network(recipe.model, config, recipe_path)
            config |= {key: value for key, value in recipe.model.items() if key in ("sample_size", "dropout")}
        if sample_size is not None:
            config["sample_size"] = sample_size
        if config.get("sample_size") is None:
            raise ValueError("its weights do not say how large the images are; give --recipe or --sample_size")
        if norm_eps is not None:
            config["norm_eps"] = norm_eps
        weights = to_ours(layout, sampled, config)
        raw = None if trained.average is None else to_ours(layout, trained.raw, config)
    except ValueError as error:
        raise ValueError(f"{path} cannot be converted: {error}") from None
    unet = _with_weights(config, weights)
    check_expressible(layout, unet.config)
    source = origin_of(layout.name, path, recipe_path)
    notes = {**trained.notes, _NEW_ORDER: True} if layout == GUIDED_DIFFUSION_NEW_ORDER else trained.notes
    return Checkpoint(unet, DDPMScheduler(**(recipe.diffusion if recipe else {})), raw, source, notes, assumed)


def read_folder(path: Path) -> Checkpoint:
    """A pipeline's folder, or that of a single UNet2DModel, of this package or diffusers, pickled weights included.

    Raises:
        ValueError: for another kind of model, in one sentence.
        OSError: it cannot be read.
    """
    is_pipeline = (path / "model_index.json").is_file()
    folder = network_in(path) if is_pipeline else path
    pickled = pickled_weights(folder)
    index = _read_json(folder / "config.json")
    if index.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{folder} holds a {index.get('_class_name')}; a UNet2DModel is expected")
    assumed = []
    # Safetensors of a variant beside them, such as weights before their average, are not what is sampled from.
    if pickled and None not in variants_of(file.name for file in folder.iterdir()):
        unet = unet_without_memory(UNet2DModel.load_config(folder))
        state: Weights = {}
        for file in pickled:
            state |= tensors_of(unpickle(file), file)
        state = unet._fix_state_dict_keys_on_load(state)
        try:
            unet.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{pickled[0]} does not hold this UNet: {' '.join(str(error).split())[:300]}") from None
        unet.eval()
    elif any(folder.glob("*.safetensors")):
        unet = UNet2DModel.from_pretrained(folder, variant=only_variant(folder))
    else:
        raise FileNotFoundError(f"{folder} has a config.json and no weights (diffusion_pytorch_model.safetensors)")
    if is_pipeline:
        scheduler = DDPMCustomPipeline.from_pretrained(path, unet=unet).scheduler
    else:
        scheduler = DDPMScheduler()
        assumed.append(HO_SCHEDULE)
    has_raw = (folder / _RAW_FILE).is_file() and only_variant(folder) != RAW_VARIANT
    raw = UNet2DModel.from_pretrained(folder, variant=RAW_VARIANT).state_dict() if has_raw else None
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    hashes = {file.name: sha256_of(file) for file in files}
    source = {"layout": "diffusers", "source": path.resolve().name, "source_sha256": hashes}
    notes = ((read_manifest(path) or {}).get("notes") or {}) if is_pipeline else {}
    return Checkpoint(unet, scheduler, raw, source, notes, assumed)


def write_folder(checkpoint: Checkpoint, destination: Path) -> None:
    """As a pipeline's folder that plain diffusers loads; the weights behind an average as its variant `non_ema`.

    Raises:
        OSError: it exists, or cannot be written.
    """
    refuse_existing(destination)
    with written_whole(destination) as partial:
        pipe = DDPMCustomPipeline(checkpoint.unet, checkpoint.scheduler)
        pipe.save_pretrained(partial)
        if checkpoint.raw is not None:
            raw = _with_weights(checkpoint.unet.config, checkpoint.raw)
            raw.save_pretrained(partial / "unet", variant=RAW_VARIANT)
        settings = {**checkpoint.source, "to": "diffusers", "assumed": checkpoint.assumed}
        _write_manifest(partial, checkpoint.unet, settings, checkpoint.notes)


def write_checkpoint(checkpoint: Checkpoint, layout: Layout, destination: Path) -> None:
    """As a file that the other project samples from, with a recipe of the same name beside it.

    Raises:
        ValueError: the project has no such network or process, in one sentence.
        OSError: one of the files exists, or cannot be written.
    """
    suffix, make_recipe = _RECIPES[layout.name]
    recipe_path = destination.with_suffix(suffix)
    manifest = f"{destination.stem}.manifest.json"
    refuse_existing(destination, recipe_path, destination.with_name(manifest))
    unet = checkpoint.unet
    check_expressible(layout, unet.config)
    try:
        recipe = make_recipe(unet.config, checkpoint.scheduler.config)
    except ValueError as error:
        raise ValueError(f"{layout.name} has no such model, which {error}") from None
    if layout is GUIDED_DIFFUSION and checkpoint.notes.get(_NEW_ORDER):
        layout, recipe = GUIDED_DIFFUSION_NEW_ORDER, f"{recipe}--{_NEW_ORDER} True\n"
    average = to_theirs(layout, unet.state_dict(), unet.config)
    weights = TrainedWeights(average, notes=checkpoint.notes)
    if checkpoint.raw is not None:
        weights.raw, weights.average = to_theirs(layout, checkpoint.raw, unet.config), average
    with written_whole(destination) as partial:
        torch.save(as_saved(layout, weights), partial)
    recipe_path.write_text(recipe)
    settings = {**checkpoint.source, "to": layout.name, "assumed": checkpoint.assumed}
    _write_manifest(destination.parent, checkpoint.unet, settings, checkpoint.notes, manifest)


def write_classifier(classifier: NoisyClassifier, source: Mapping[str, Any], destination: Path) -> None:
    """As a folder that `NoisyClassifier.from_pretrained` loads.

    Raises:
        OSError: it exists, or cannot be written.
    """
    refuse_existing(destination)
    with written_whole(destination) as partial:
        classifier.save_pretrained(partial)
        _write_manifest(partial, classifier, {**source, "to": "diffusers"})


def origin_of(layout: str, path: Path, recipe: Path | None) -> dict[str, Any]:
    """What a manifest says of a checkpoint's file and recipe."""
    found = {"layout": layout, "source": path.name, "source_sha256": sha256_of(path)}
    if recipe is not None:
        found["recipe"] = recipe.name
        if recipe.is_file():  # and not the name of a published one
            found["recipe_sha256"] = sha256_of(recipe)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so {path.parent} is not a model's folder{networks_below(path.parent)}"
        )
    return read_json(path)


def _layout(weights: Weights, recipe: ForeignRecipe | None, path: Path) -> Layout:
    """The layout of the weights, as exactly as the recipe knows it.

    Raises:
        ValueError: the recipe is of another project; or there is none, and the weights alone do not do.
    """
    found = layout_of(weights)
    if recipe is not None and (recipe.layout or found).name == found.name and (recipe.layout or not found.needs_recipe):
        return recipe.layout or found
    if recipe is not None:
        raise ValueError(f"it is a checkpoint of {found.name}, and the recipe is of another project")
    if found.needs_recipe:
        name = path.stem if path.stem in PUBLISHED else "flags.txt"
        raise ValueError(
            "its weights do not tell how many heads its attention has, nor their order; give the flags that it is "
            f"sampled with, in a file or by the name of a published checkpoint, such as --recipe {name}"
        )
    return found


def _check_same_network(wanted: Mapping[str, Any], found: Mapping[str, Any], recipe: Path | None) -> None:
    for key, value in wanted.items():
        if key in found and value != found[key]:
            raise ValueError(
                f"the recipe {recipe} is of another network: its {key} is {value}, that of the weights {found[key]}"
            )


def _with_weights(config: Mapping[str, Any], weights: Weights) -> UNet2DModel:
    unet = unet_without_memory(config)
    unet.load_state_dict(weights, assign=True)
    unet.eval()
    return unet


def _write_manifest(
    folder: Path,
    network: torch.nn.Module,
    settings: dict[str, Any],
    notes: dict[str, Any] | None = None,
    file: str = "manifest.json",
) -> None:
    packages = ("ddpm-hf", "diffusers", "safetensors", "torch")
    write_manifest(
        folder,
        settings,
        {"python": platform.python_version(), **{package: version(package) for package in packages}},
        file,
        tensors=len(network.state_dict()),
        parameters=sum(tensor.numel() for tensor in network.state_dict().values()),
        weights_sha256=weights_hash(network),
        notes=notes or {},
    )


def refuse_existing(*paths: Path) -> None:
    """Nothing is written over.

    Raises:
        FileExistsError: naming the first that is there.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists and is left as it is; give another destination, or remove it")
