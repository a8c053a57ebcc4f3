"""Networks that diffusers' config cannot say: attention_head_dim per level, and time_proj_dim."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from tests.networks import TWO_LEVELS

EVERYWHERE = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
TINY: dict[str, Any] = {**TWO_LEVELS, **EVERYWHERE, "layers_per_block": 1, "sample_size": 8}
OWN: dict[str, dict[str, Any]] = {"heads": {"attention_head_dim": (4, 8)}, "waves": {"time_proj_dim": 12}}


def seeded(**config: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**{**TINY, **config}).eval()


def test_a_list_has_the_heads_of_each_level(rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 8, 8, generator=rng)
    listed, plain = seeded(attention_head_dim=[2, 8]), seeded(attention_head_dim=8)
    assert [block.attentions[0].heads for block in listed.down_blocks] == [4, 2]
    assert listed.mid_block.attentions[0].heads == 2
    assert [block.attentions[0].heads for block in listed.up_blocks] == [2, 4]
    assert torch.equal(seeded(attention_head_dim=[8, 8])(x, 3).sample, plain(x, 3).sample)
    assert (listed(x, 3).sample - plain(x, 3).sample).abs().max() > 1e-6


def test_the_time_embedding_sees_as_many_waves() -> None:
    unet = seeded(time_proj_dim=12, time_embedding_dim=20)
    assert unet.time_embedding.linear_1.weight.shape == (20, 12)
    assert unet.time_proj(torch.tensor([3])).shape == (1, 12)
    assert seeded(time_proj_dim=12, time_embedding_type="fourier").time_embedding.linear_1.weight.shape == (32, 24)
    assert seeded(time_proj_dim=8).state_dict().keys() == seeded().state_dict().keys()


@pytest.mark.parametrize("name", OWN)
def test_they_load_with_our_classes_and_diffusers_refuses_them(name: str, tmp_path: Path, rng: torch.Generator) -> None:
    unet = seeded(**OWN[name])
    DDPMCustomPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["ddpm_hf.models.unet_2d", "UNet2DModel"]
    x = torch.randn(2, 3, 8, 8, generator=rng)
    for pipe in (DDPMCustomPipeline.from_pretrained(tmp_path), diffusers.DiffusionPipeline.from_pretrained(tmp_path)):
        assert type(pipe.unet) is UNet2DModel
        assert torch.equal(pipe.unet(x, 3).sample, unet(x, 3).sample)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"'int' and '(tuple|list)'|time_embedding"):
        diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")


def test_a_network_of_diffusers_has_none_of_our_keys(tmp_path: Path) -> None:
    DDPMCustomPipeline(seeded(), DDIMScheduler()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert not {"time_proj_dim", "patch_size"} & config.keys()
    assert config["attention_head_dim"] == 8
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_head_dim": (8,)}, "attention_head_dim has 1 entries for 2 levels; give a number, or one per"),
        ({"attention_head_dim": (16, 16)}, "attention_head_dim=16 does not fit into 8 of block_out_channels"),
        ({"attention_head_dim": (8, 0)}, "attention_head_dim=0 does not fit into 16"),
        ({"attention_head_dim": ("8", 8)}, "attention_head_dim=.* must be"),
        ({"time_proj_dim": 0}, "time_proj_dim=0 must be 1 or more"),
        ({"time_proj_dim": 2, "freq_shift": 1}, "freq_shift=1 divides by zero or less with time_proj_dim=2"),
    ],
    ids=str,
)
def test_bad_values(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        seeded(**change)


def test_a_level_without_attention_may_have_any_number() -> None:
    nowhere = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    assert seeded(**nowhere, attention_head_dim=(16, 16))
