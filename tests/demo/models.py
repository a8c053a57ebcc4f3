"""Small models for the tests of the page."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from tests.networks import TWO_LEVELS


def make_model(folder: Path, channels: int = 1, **options: Any) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=channels, out_channels=channels, **TWO_LEVELS, **options)
    DDPMCustomPipeline(unet.eval(), DDIMScheduler()).save_pretrained(folder)
    return folder


def small(picture: Image.Image, side: int = 8) -> Tensor:
    """An enlarged grey picture as the uint8 image that it shows."""
    factor = picture.width // side
    return torch.from_numpy(np.array(picture.convert("L"))[::factor, ::factor].copy())
