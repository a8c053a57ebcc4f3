"""The flags of OpenAI's checkpoints: their networks have the numbers of parameters that are published."""

import re
from pathlib import Path
from typing import Any

import pytest

from ddpm_hf.conversion.layouts import to_theirs, unet_without_memory
from ddpm_hf.conversion.openai_flags import PUBLISHED, parse_flags, read_flags
from ddpm_hf.conversion.recipes import read_recipe
from tests.openai_peer import OpenAINetwork


def adm(levels: tuple[int, ...], attended: set[int], layers: int = 2, width: int = 256, **more: Any) -> OpenAINetwork:
    return OpenAINetwork(width, levels, layers, frozenset(attended), heads=(), is_residual=True, **more)


def improved(levels: tuple[int, ...], attended: set[int], layers: int = 3, **more: Any) -> OpenAINetwork:
    return OpenAINetwork(levels[0], levels, layers, frozenset(attended), heads=(), **more)


ADM_256 = adm((256, 256, 512, 512, 1024, 1024), {3, 4, 5})
IMPROVED_LSUN = improved((128, 128, 256, 256, 512, 512), {4}, layers=2, is_scale_shift=False)
CIFAR10 = improved((128, 256, 256, 256), {1, 2})
IMAGENET64 = improved((128, 256, 384, 512), {2, 3})

# The network, the published millions of parameters (of guided-diffusion in the paper, Dhariwal and Nichol 2021; of
# improved-diffusion in its README and names of files, rounded down), and whether plain diffusers' config can say it.
NETWORKS: dict[str, tuple[OpenAINetwork, float, bool]] = {
    "64x64_diffusion": (adm((192, 384, 576, 768), {1, 2, 3}, 3, 192, classes=1000), 296, True),
    "128x128_diffusion": (adm((256, 256, 512, 768, 1024), {2, 3, 4}, classes=1000), 422, False),
    "256x256_diffusion": (adm((256, 256, 512, 512, 1024, 1024), {3, 4, 5}, classes=1000), 554, True),
    "256x256_diffusion_uncond": (ADM_256, 552, True),
    "512x512_diffusion": (adm((128, 256, 256, 512, 512, 1024, 1024), {4, 5, 6}, classes=1000), 559, False),
    **{f"lsun_{name}": (ADM_256, 552, True) for name in ("bedroom", "cat", "horse", "horse_nodropout")},
    "cifar10_uncond_50M_500K": (CIFAR10, 50, True),
    "cifar10_uncond_vlb_50M_500K": (CIFAR10, 50, True),
    "imagenet64_uncond_100M_1500K": (IMAGENET64, 100, False),
    "imagenet64_uncond_vlb_100M_1500K": (IMAGENET64, 100, False),
    "imagenet64_cond_270M_250K": (improved((192, 384, 576, 768), {2, 3}, classes=1000), 270, False),
    "lsun_uncond_100M_1200K_bs128": (IMPROVED_LSUN, 100, True),
    "lsun_uncond_100M_2400K_bs64": (IMPROVED_LSUN, 100, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_built_with_its_parameters(name: str) -> None:
    network, millions, is_diffusers_network = NETWORKS[name]
    recipe = read_recipe(Path(name))
    unet = unet_without_memory(recipe.model)
    assert recipe.layout is not None
    theirs = to_theirs(recipe.layout, unet.state_dict(), unet.config)
    assert {key: tuple(tensor.shape) for key, tensor in theirs.items()} == network.shapes()
    found = network.parameters() / 1e6
    assert found == sum(weight.numel() for key, weight in unet.named_parameters() if "time_proj" not in key) / 1e6
    assert abs(found - millions) < 1 if network.is_residual else millions <= found < 1.25 * millions
    assert unet.is_diffusers_network == is_diffusers_network


def test_every_published_network_is_compared_and_documented() -> None:
    assert NETWORKS.keys() == PUBLISHED.keys()
    page = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()
    assert [name for name in PUBLISHED if f"`{name}`" not in page] == []


def test_the_heads_and_processes_of_the_published() -> None:
    heads = {name: read_flags(flags).model["attention_head_dim"] for name, flags in PUBLISHED.items()}
    assert heads["128x128_diffusion"] == [64, 64, 128, 192, 256]
    assert heads["imagenet64_cond_270M_250K"] == [48, 96, 144, 192]
    assert heads["cifar10_uncond_50M_500K"] == heads["256x256_diffusion"] == 64
    assert heads["lsun_uncond_100M_1200K_bs128"] is None
    rescaled = {name for name, flags in PUBLISHED.items() if "time_embedding_type" in read_flags(flags).model}
    assert rescaled == {name for name in PUBLISHED if "uncond" in name and ("cifar" in name or "imagenet" in name)}
    cosine = {name for name, flags in PUBLISHED.items() if "beta_end" not in read_flags(flags).diffusion}
    assert cosine == rescaled | {"64x64_diffusion", "imagenet64_cond_270M_250K"}
    assert {read_flags(flags).diffusion["variance_type"] for flags in PUBLISHED.values()} == {"learned_range"}


@pytest.mark.parametrize(
    "text",
    [
        "--image_size 64 --class_cond True",
        'MODEL_FLAGS="--image_size 64"\nTRAIN_FLAGS="--lr 1e-4 --class_cond True" # and so on',
        "--image_size=64 \\\n  --class_cond=yes --timestep_respacing 250",
    ],
)
def test_flags_are_read_as_they_are_published(text: str) -> None:
    recipe = read_flags(parse_flags(text))
    assert (recipe.model["sample_size"], recipe.model["num_class_embeds"]) == (64, 1000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("python image_sample.py --image_size 64", "has 'python' where a flag is expected"),
        ("--image_size", "gives --image_size no value"),
        ("--image_size --class_cond True", "gives --image_size no value"),
        ('"--image_size 64', "is no line of flags"),
        ("--image_sise 64", "has --image_sise, which is no flag"),
        ("--image_size 64.5", "has --image_size 64.5, and a whole number from 1 on"),
        ("--num_res_blocks 0", "has --num_res_blocks 0"),
        ("--image_size 48", "has --image_size 48 without --channel_mult; 512, 256, 128, 64, 32 need none"),
        ("--channel_mult 1;2", "has --channel_mult 1;2, and whole numbers with commas between"),
        ("--class_cond maybe", "has --class_cond maybe, and True or False"),
        ("--dropout 1.5", "has --dropout 1.5, and a number from 0"),
        ("--noise_schedule sqrt", "has --noise_schedule sqrt, and linear and cosine are known"),
        ("--num_heads 5", "has --num_heads 5, which does not divide the widths [384, 512]"),
        ("--num_head_channels 100", "has --num_head_channels 100, which does not divide the widths [384, 512]"),
        ("--num_heads_upsample 2", "has --num_heads_upsample 2 beside --num_heads 4"),
        ("--large_size 256 --small_size 64", "has --large_size, so it is of an upsampler"),
        ("--diffusion_steps 4000", "has --diffusion_steps 4000 and no --rescale_timesteps; give it"),
        ("--num_channels 100", "block_out_channels has 100, not a multiple of norm_num_groups=32"),
    ],
)
def test_other_flags_are_refused_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "flags.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        unet_without_memory(read_recipe(tmp_path / "flags.txt").model)


def test_a_name_that_is_none_is_told_the_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"256x256 is no recipe; give .* \(64x64_diffusion, 128x128_diffusion, "):
        read_recipe(Path("256x256"))
    (tmp_path / "flags.txt").write_text("--rescale_timesteps True")  # of 1000 steps it changes nothing
    assert "time_embedding_type" not in read_recipe(tmp_path / "flags.txt").model
