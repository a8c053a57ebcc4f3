"""What a settings file of another project says, in our terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ddpm_hf.conversion.layout_tables import Layout
from ddpm_hf.diffusion.noise_schedules import make_betas

Section = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """One of ddpm-torch's data sets: its number of training images, and the same images by way of the Hub."""

    size: int
    channels: int
    resolution: int
    data: Mapping[str, Any]


@dataclass(frozen=True)
class ForeignRecipe:
    """What a settings file says, in our terms.

    Attributes:
        model: UNet2DModel keys; those that weights tell too are there to be compared with them.
        diffusion: DDPMScheduler keys.
        dataset: one of `DATASETS`, if it is named and is one.
        train: ddpm-torch's section of that name, as it stands.
        layout: that of the weights, where the recipe knows it.
    """

    model: Section
    diffusion: Section
    dataset: Dataset | None = None
    train: Section | None = None
    layout: Layout | None = None


def levels_of(channels: list[int], attention: list[bool]) -> Section:
    """The UNet2DModel keys of levels of these widths, of which some have attention."""
    kinds = ["Attn" if has else "" for has in attention]
    return {
        "block_out_channels": channels,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
    }


def check_schedule(scheduler: Any) -> None:
    """See that the betas of a scheduler's config are those that its beta_schedule names.

    Raises:
        ValueError: to be read after "no such model, which".
    """
    if scheduler.trained_betas is not None:
        betas = torch.tensor(scheduler.trained_betas, dtype=torch.float64)
        parts = (scheduler.num_train_timesteps, scheduler.beta_start, scheduler.beta_end)
        if not torch.equal(betas, make_betas(scheduler.beta_schedule, *parts)):
            raise ValueError("has trained_betas of its own, and a recipe only names a schedule")
    if scheduler.get("rescale_betas_zero_snr", False):
        raise ValueError("has rescale_betas_zero_snr, which the other project lacks")
