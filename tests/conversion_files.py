"""Files as other projects leave them, and the command that converts them."""

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.cli import convert
from tests.peers import ddpm_torch_weights, ermongroup_weights

RECIPE = {
    "dataset": "cifar10",
    "diffusion": {
        "timesteps": 500,
        "beta_start": 0.0002,
        "beta_end": 0.03,
        "beta_schedule": "quad",
        "model_mean_type": "eps",
        "model_var_type": "fixed-large",
        "loss_type": "mse",
    },
    "model": {
        "in_channels": 3,
        "hid_channels": 32,
        "ch_multipliers": [1, 2, 2],
        "num_res_blocks": 2,
        "apply_attn": [False, True, False],
        "drop_rate": 0.1,
    },
    "train": {
        "lr": 2e-4,
        "batch_size": 128,
        "grad_norm": 1.0,
        "epochs": 2040,
        "warmup": 5000,
        "use_ema": True,
        "ema_decay": 0.9999,
    },
}
YML = {
    "data": {"image_size": 32, "channels": 3, "rescaled": True, "logit_transform": False},
    "model": {
        "type": "simple",
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2, 2],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.1,
        "var_type": "fixedlarge",
        "resamp_with_conv": True,
    },
    "diffusion": {
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "num_diffusion_timesteps": 1000,
    },
    "training": {"batch_size": 128},
}


def run(*arguments: object) -> None:
    """The command in this process; SystemExit where it refuses."""
    before, sys.argv = sys.argv, ["ddpm-hf-convert", *map(str, arguments)]
    verbosity = diffusers.utils.logging.get_verbosity()
    try:
        convert.main()
    finally:
        sys.argv = before
        diffusers.utils.logging.set_verbosity(verbosity)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said.removeprefix("ddpm-hf-convert: error: ").strip()


def ddpm_torch_file(path: Path, prefix: str = "", **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As its trainer saves it, with optimizer, scheduler and a score in numpy's type; (weights, average)."""
    raw, average = ddpm_torch_weights(seed=0, **options), ddpm_torch_weights(seed=1, **options)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / 5, 1.0))
    content = {
        "model": OrderedDict((prefix + key, tensor) for key, tensor in raw.items()),
        "optimizer": optimizer.state_dict(),
        "ema": {"decay": 0.9999, "shadow": average, "num_updates": 795_599},
        "scheduler": schedule.state_dict(),
        "epoch": 2040,
        "loss": 0.03,
        "fid": np.float64(3.2),
    }
    torch.save(content, path)
    return raw, average


def ermongroup_list(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As ermongroup/ddim's runner saves it: data-parallel weights, optimizer, epoch, step, average."""
    raw, average = ermongroup_weights(seed=0), ermongroup_weights(seed=1)
    parallel = {f"module.{key}": tensor for key, tensor in raw.items()}
    torch.save([parallel, {"state": {}, "param_groups": []}, 7, 5000, average], path)
    return raw, average


def recipe_file(path: Path, content: Any = RECIPE) -> Path:
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


def tiny_folder(path: Path, scheduler: Any = None, **options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    like = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    settings = {"sample_size": 8, "block_out_channels": (32, 64), "attention_head_dim": None, **like, **blocks}
    unet: UNet2DModel = UNet2DModel(**{**settings, **options}).eval()
    DDPMCustomPipeline(unet, scheduler or DDPMScheduler()).save_pretrained(path)
    return unet
