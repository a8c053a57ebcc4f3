"""Checkpoints of other projects into pipeline folders, and back.

    ddpm-hf-convert ddpm_cifar10_2040.pt cifar10 --recipe configs/cifar10.json
    ddpm-hf-convert cifar10 back.pt --to ddpm-torch
    ddpm-hf-convert configs/cifar10.json cifar10.yaml

docs/conversion.md has the tables of names, and what is not converted and why.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers

from ddpm_hf.command_line import fail, parse_settings
from ddpm_hf.conversion.checkpoints import (
    Checkpoint,
    read_checkpoint,
    read_folder,
    refuse_existing,
    write_checkpoint,
    write_folder,
)
from ddpm_hf.conversion.layouts import LAYOUTS
from ddpm_hf.conversion.recipes import to_training_recipe


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of ddpm-hf-convert.

    Args:
        source: A checkpoint of ddpm-torch, ermongroup/ddim or pytorch_diffusion; the folder of a UNet2DModel or of its
            pipeline; or a recipe of ddpm-torch (.json).
        destination: A folder for diffusers, a file for the others, a .yaml for a recipe. It must not exist.
        to: The layout to write.
        recipe: Settings that the checkpoint was trained with: ddpm-torch's .json or .info, ermongroup/ddim's .yml.
        sample_size: Side of the checkpoint's images, where no recipe says it.
        norm_eps: Of the group norms: 1e-5 for checkpoints of older versions of ddpm-torch; null is 1e-6.
    """

    source: Path
    destination: Path
    to: Literal["diffusers", "ddpm-torch", "ermongroup-ddim"] = "diffusers"
    recipe: Path | None = None
    sample_size: int | None = None
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        if self.sample_size is not None and self.sample_size < 1:
            raise ValueError(f"sample_size is {self.sample_size} and must be at least 1")
        given = [name for name in ("recipe", "sample_size", "norm_eps") if getattr(self, name) is not None]
        if given and (self.source.is_dir() or self.is_recipe):
            raise ValueError(f"{given[0]} is for a checkpoint's file, and {self.source} says it by itself")
        if self.is_recipe and self.destination.suffix not in (".yaml", ".yml"):
            raise ValueError(f"a recipe becomes a .yaml, and the destination is {self.destination}")
        if self.to != "diffusers" and self.destination.suffix in (".json", ".yml", ".yaml"):
            raise ValueError(
                f"{self.destination} is the name of a recipe; give that of a checkpoint, such as .pt or .ckpt"
            )

    @property
    def is_recipe(self) -> bool:
        """Whether the source is a recipe."""
        return self.source.suffix in (".json", ".info") and not self.source.is_dir()


def main() -> None:
    """The console command."""
    config = parse_settings(
        ConvertConfig, sys.argv[1:], "Convert a checkpoint or recipe of another project.", is_positional=True
    )
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # what it would say of missing weights is in the refusal
    try:
        print(convert(config))
    except (ValueError, OSError) as error:
        fail(str(error))


def convert(config: ConvertConfig) -> str:
    """Convert, and say what was done.

    Raises:
        ValueError: the source is not one of the kinds, or not wholly, or has no counterpart.
        OSError: the source cannot be read, or the destination exists or cannot be written.
    """
    refuse_existing(config.destination)
    if config.is_recipe:
        text = to_training_recipe(config.source)
        config.destination.parent.mkdir(parents=True, exist_ok=True)
        config.destination.write_text(text)
        return f"{config.destination}: a recipe for train_accelerate.py"
    if config.source.is_dir():
        checkpoint = read_folder(config.source)
    else:
        checkpoint = read_checkpoint(config.source, config.recipe, config.sample_size, config.norm_eps)
    if config.to == "diffusers":
        write_folder(checkpoint, config.destination)
    else:
        write_checkpoint(checkpoint, LAYOUTS[config.to], config.destination)
    return _report(config, checkpoint)


def _report(config: ConvertConfig, checkpoint: Checkpoint) -> str:
    weights = list(checkpoint.unet.state_dict().values())
    parameters = sum(weight.numel() for weight in weights)
    averages = " (averaged weights, and those behind them)" if checkpoint.raw is not None else ""
    lines = [
        f"{config.destination}: {parameters:,} parameters in {len(weights)} tensors, from "
        f"{checkpoint.source['layout']} to {config.to}{averages}",
        *(f"not said by {config.source}, so assumed: {what}" for what in checkpoint.assumed),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
