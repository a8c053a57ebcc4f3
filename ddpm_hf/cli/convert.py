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

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of ddpm-hf-convert.

    Args:
        source: A checkpoint of ddpm-torch, ermongroup/ddim, pytorch_diffusion, improved-diffusion or guided-diffusion;
            a noisy classifier of the last; the folder of a UNet2DModel or of its pipeline; or a recipe of ddpm-torch
            (.json) or of OpenAI's flags (.txt).
        destination: Output: a folder for diffusers, a file for other layouts, a .yaml for a recipe. It must not exist.
        to: Layout of the checkpoint to write.
        recipe: Settings that the checkpoint was trained with: ddpm-torch's .json or .info, ermongroup/ddim's .yml, a
            .txt with the flags of OpenAI's projects, or the name of a checkpoint that they publish, such as
            256x256_diffusion.
        sample_size: Side of the checkpoint's images in pixels, if there is no recipe that states it.
        norm_eps: Epsilon of the group norms: 1e-5 for checkpoints of older versions of ddpm-torch; null is 1e-6.
    """

    source: Path
    destination: Path
    to: Literal["diffusers", "ddpm-torch", "ermongroup-ddim", "guided-diffusion"] = "diffusers"
    recipe: Path | None = None
    sample_size: int | None = None
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        if self.sample_size is not None and self.sample_size < 1:
            raise ValueError(f"sample_size is {self.sample_size} and must be at least 1")
        given = [name for name in ("recipe", "sample_size", "norm_eps") if getattr(self, name) is not None]
        if given and (self.source.is_dir() or self.is_recipe):
            raise ValueError(f"{given[0]} is for a checkpoint file only; {self.source} needs none, leave it out")
        if self.is_recipe and self.destination.suffix not in (".yaml", ".yml"):
            raise ValueError(f"a recipe becomes a .yaml, and the destination is {self.destination}")
        if self.to != "diffusers" and self.destination.suffix in (".json", ".yml", ".yaml", ".txt"):
            raise ValueError(
                f"{self.destination} is the name of a recipe; give that of a checkpoint, such as .pt or .ckpt"
            )

    @property
    def is_recipe(self) -> bool:
        """Whether the source is a recipe."""
        return self.source.suffix in (".json", ".info", ".txt") and not self.source.is_dir()


@ending_in_one_sentence()
def main() -> None:
    """The console command."""
    config = parse_settings(
        ConvertConfig, sys.argv[1:], "Convert a checkpoint or recipe of another project.", is_positional=True
    )
    from ddpm_hf.cli import converting  # only now, as it loads torch

    converting.run(config)


if __name__ == "__main__":
    main()
