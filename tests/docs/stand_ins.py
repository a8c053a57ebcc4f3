"""What code in the pages needs, in small: a folder with models in runs/, configs/, and settings of tiny runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

import ddpm_hf
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel, training_config
from ddpm_hf.pixels import PixelFormat
from ddpm_hf.training.settings import Config
from tests.docs.pages import ROOT
from tests.networks import TWO_LEVELS

TINY: dict[str, Any] = {
    "threads": 1,
    "quiet": True,
    "model": {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": None},
    "training": {"steps": 2, "batch_size": 16, "warmup_steps": 1},
    "evaluation": {"num_images": 8, "num_inference_steps": 3},
}


def fill(folder: Path) -> None:
    """Lay them into a folder, in which the code then runs."""
    torch.manual_seed(0)
    process = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    digits = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TWO_LEVELS).eval()
    for name in ("digits", "photos", "digits_conditional"):
        DDPMCustomPipeline(digits, DDIMScheduler(**process)).save_pretrained(folder / "runs" / name)
    bands = UNet2DModel(sample_size=8, in_channels=5, out_channels=5, **TWO_LEVELS).eval()
    pixels = PixelFormat("float32", (0.0,) * 5, (1.0,) * 5).to_dict()
    DDPMCustomPipeline(bands, DDIMScheduler(**process), pixels).save_pretrained(folder / "runs" / "bands")
    (folder / "mine.yaml").write_text(training_config().to_yaml())
    for name in ("configs", "pipelines", ".ci"):
        (folder / name).symlink_to(ROOT / name)


def tiny_config(*recipe: str, **settings: Any) -> Config:
    """As `training_config`, for a run of two steps and no more weights than a test needs."""
    return training_config(*recipe, **(settings | TINY))


def make_small(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run in a folder, with tiny settings in the place of those that code asks for."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ddpm_hf, "training_config", tiny_config)
