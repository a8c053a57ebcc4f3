"""The index of a pipeline's folder, model_index.json: diffusers' names in the file, our classes in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_hf.files import read_json
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.schedulers.adams import AdamsScheduler
from ddpm_hf.schedulers.ddim import DDIMScheduler
from ddpm_hf.schedulers.ddpm import DDPMScheduler

OURS: dict[str, Any] = {cls.__name__: cls for cls in (UNet2DModel, DDPMScheduler, DDIMScheduler)}
"""The classes that stand in the place of diffusers' of the same names."""

STAND_INS: dict[str, Any] = {AdamsScheduler.__name__: AdamsScheduler}
"""Schedulers that diffusers lacks. A folder names DDIMScheduler in their place, which solves the same equation in more
steps; the scheduler's own file tells us what it was."""


def saved_index(index: dict[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The index that `DiffusionPipeline` makes of its components, as plain diffusers reads it, without local paths."""
    index.pop("_name_or_path", None)
    if index.get("_pixels") is None:
        index.pop("_pixels", None)
    if index["scheduler"][1] in STAND_INS:
        index["scheduler"] = ["diffusers", DDIMScheduler.__name__]
    for name, entry in index.items():
        # Of a network that only we can say it is left as it is: diffusers would take it for another one.
        is_ours = isinstance(entry, list) and entry[1] in OURS
        if is_ours and getattr(components[name], "is_diffusers_network", True):
            index[name] = ["diffusers", entry[1]]
    is_ddim = index["scheduler"][1] == DDIMScheduler.__name__
    return {**index, "_class_name": "DDIMPipeline" if is_ddim else "DDPMPipeline"}


def make_ours(index: dict[str, Any], folder: Path) -> None:
    """Put our classes in the place of diffusers' in an index, which is changed.

    Args:
        index: what the file holds.
        folder: the pipeline's own; it need not be there.
    """
    if "_pixels" in index:
        index["pixels"] = index.pop("_pixels")
    for name, entry in index.items():
        if isinstance(entry, list | tuple) and entry[0] == "diffusers" and entry[1] in OURS:
            index[name] = [OURS[entry[1]].__module__, entry[1]]
    of_scheduler = folder / "scheduler" / AdamsScheduler.config_name
    own = read_json(of_scheduler).get("_class_name") if of_scheduler.is_file() else None
    if own in STAND_INS:
        index["scheduler"] = [STAND_INS[own].__module__, own]


def check_index(index: dict[str, Any], source: str) -> None:
    """See that an index is of a pipeline that `DDPMCustomPipeline` loads.

    Raises:
        ValueError: it is of another form, or of another kind of pipeline; in one sentence that names the source.
    """
    lists = {name: list(entry) for name, entry in index.items() if isinstance(entry, list | tuple)}
    if not all(len(entry) == 2 and all(isinstance(part, str | None) for part in entry) for entry in lists.values()):
        raise ValueError(f"{source} has a model_index.json of another form; restore it.")
    components = {name: class_name for name, (_, class_name) in lists.items()}
    if set(components) != {"unet", "scheduler"} or components["unet"] != "UNet2DModel":
        parts = ", ".join(f"{name}: {class_name}" for name, class_name in components.items())
        raise ValueError(
            f"{source} holds a {index.get('_class_name', 'pipeline')} ({parts or 'of nothing'}); DDPMCustomPipeline "
            "loads pipelines of a UNet2DModel and a scheduler, such as DDPMPipeline and DDIMPipeline."
        )
