"""OpenAI's improved-diffusion and guided-diffusion: networks that compute the same, and come back with every bit.

A published file cannot be had here: the oracle (tests/openai_peer.py) is written from the layout of their source.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.conversion import recipes
from ddpm_hf.conversion.openai_flags import parse_flags, read_flags
from tests.conversion_files import ddpm_torch_file, recipe_file, refusal, run, tiny_folder
from tests.openai_peer import OpenAINetwork

TINY = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2,3 --attention_resolutions 8,4 "
ADM = TINY + "--num_head_channels 16 --learn_sigma True --resblock_updown True "
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    # improved-diffusion: a number of heads for all widths, convolutions between the levels
    "heads": (TINY + "--num_heads 2 --learn_sigma True", {"heads": (1, 2, 2)}),
    "added": (
        TINY + "--num_heads 1 --use_scale_shift_norm False",
        {"heads": (1, 1, 1), "is_scale_shift": False, "learns_variance": False},
    ),
    "rescaled": (
        TINY + "--num_heads 1 --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps 1",
        {"heads": (1, 1, 1), "time_factor": 0.25},
    ),
    # guided-diffusion: heads of one width, residual blocks between the levels, classes, both orders
    "classes": (ADM + "--class_cond True", {"heads": (2, 4, 6), "is_residual": True, "classes": 1000}),
    "new order": (
        ADM + "--use_new_attention_order True",
        {"heads": (2, 4, 6), "is_residual": True, "is_new_order": True},
    ),
    # as its network for 512 pixels: the first level is not as wide as the waves of the time embedding
    "waves": (
        ADM.replace("1,2,3", "2,1,3"),
        {"levels": (64, 32, 96), "heads": (4, 2, 6), "is_residual": True},
    ),
}
OURS_ONLY = {"heads", "waves"}
TIMES = torch.tensor([3, 421])
LABELS = torch.tensor([7, 999])


def peer(name: str) -> OpenAINetwork:
    plain = {"width": 32, "levels": (32, 64, 96), "layers": 1, "attended": frozenset({1, 2})}
    return OpenAINetwork(**{**plain, **FAMILY[name][1]})


def flags_file(folder: Path, flags: str) -> Path:
    (folder / "flags.txt").write_text(f'# as in their README\nMODEL_FLAGS="{flags}"\n')
    return folder / "flags.txt"


def converted(name: str, folder: Path, flags: str | None = None) -> Path:
    torch.save(peer(name).weights(), folder / "ema_0.9999_500000.pt")
    recipe = flags_file(folder, flags or FAMILY[name][0])
    run(folder / "ema_0.9999_500000.pt", folder / "folder", "--recipe", recipe)
    return folder / "folder"


@pytest.fixture(scope="module", params=FAMILY)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One of the family, and the folder that it was converted to."""
    return request.param, converted(request.param, tmp_path_factory.mktemp("openai"))


def difference(name: str, unet: Any) -> float:
    """The largest between an output and that of the oracle, in double precision."""
    network = peer(name)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = None if network.classes is None else LABELS
    doubled = {key: tensor.double() for key, tensor in network.weights().items()}
    wanted = network.forward(doubled, images, TIMES, labels)
    assert wanted.std() > 0.3
    with torch.no_grad():
        return float((unet.double()(images, TIMES, labels).sample - wanted).abs().max())


def test_it_computes_the_same_and_comes_back_bitwise(pipeline: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = pipeline
    assert difference(name, UNet2DModel.from_pretrained(folder, subfolder="unet")) < 1e-5

    run(folder, tmp_path / "back.pt", "--to", "guided-diffusion")
    weights, back = peer(name).weights(), torch.load(tmp_path / "back.pt", weights_only=True)
    assert sorted(back) == sorted(weights)
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())
    flags = parse_flags((tmp_path / "back.txt").read_text())
    assert read_flags(flags) == read_flags(parse_flags(FAMILY[name][0]))
    newer = {"num_head_channels", "resblock_updown", "use_new_attention_order"}  # flags that improved-diffusion lacks
    assert peer(name).is_residual or not newer & flags.keys()


def test_plain_diffusers_loads_it_or_refuses_it(pipeline: tuple[str, Path]) -> None:
    name, folder = pipeline
    if name in OURS_ONLY:
        with pytest.raises((TypeError, ValueError, RuntimeError), match=r"'int' and 'list'|time_embedding"):
            diffusers.UNet2DModel.from_pretrained(folder / "unet")
        return
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is diffusers.DDPMPipeline
    assert type(pipe.unet) is diffusers.UNet2DModel
    assert difference(name, pipe.unet) < 1e-5


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("new order", ADM),
        ("classes", ADM + "--class_cond True --use_new_attention_order True"),
        ("heads", TINY + "--num_heads 1 --learn_sigma True"),
        ("heads", TINY + "--num_head_channels 32 --learn_sigma True"),
        ("rescaled", FAMILY["rescaled"][0].replace("--rescale_timesteps 1", "--rescale_timesteps 0")),
    ],
    ids=["old order", "other order", "one head", "head channels", "not rescaled"],
)
def test_each_flag_that_the_weights_do_not_tell_matters(name: str, flags: str, tmp_path: Path) -> None:
    folder = converted(name, tmp_path, flags)
    assert difference(name, UNet2DModel.from_pretrained(folder, subfolder="unet")) > 1e-3


def test_the_pipeline_samples_with_the_learned_range(tmp_path: Path) -> None:
    pipe = DDPMCustomPipeline.from_pretrained(converted("classes", tmp_path))
    assert pipe.scheduler.config.variance_type == "learned_range"
    images = pipe(seeds=[0, 1], class_labels=[7, 999], num_inference_steps=3, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()


@pytest.mark.parametrize("steps", [1000, 4000])
def test_the_noise_schedules_are_theirs(steps: int) -> None:
    """Ho et al.'s line keeps its last noise for any number of steps; the cosine is Nichol and Dhariwal's."""
    both = [f"--diffusion_steps {steps} --rescale_timesteps 0 --noise_schedule {name}" for name in ("linear", "cosine")]
    linear, cosine = (DDPMScheduler(**read_flags(parse_flags(flags)).diffusion) for flags in both)
    wanted = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    torch.testing.assert_close(linear.betas.double(), wanted, rtol=1e-6, atol=0)
    bars = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    wanted = torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(bars)])
    torch.testing.assert_close(cosine.betas, wanted, rtol=1e-4, atol=1e-7)


def test_a_table_of_timesteps_that_was_trained_on_does_not_go_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = converted("rescaled", tmp_path)
    pipe = DDPMCustomPipeline.from_pretrained(folder)
    assert pipe.unet.time_proj.weight.shape == (4000, 32)
    pipe.unet.time_proj.weight.data[5] += 1
    pipe.save_pretrained(tmp_path / "trained")
    sentence = refusal(capsys, tmp_path / "trained", tmp_path / "back.pt", "--to", "guided-diffusion")
    assert "time_proj.weight is learned, where it has the sines and cosines of rescaled timesteps" in sentence
    assert not (tmp_path / "back.txt").exists()


def test_a_published_checkpoint_needs_its_name_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.PUBLISHED, "64x64_diffusion", parse_flags(FAMILY["new order"][0]))  # type: ignore
    torch.save(peer("new order").weights(), tmp_path / "64x64_diffusion.pt")
    asked = refusal(capsys, tmp_path / "64x64_diffusion.pt", tmp_path / "folder")
    assert "do not tell how many heads its attention has" in asked
    assert asked.endswith("such as --recipe 64x64_diffusion")
    run(tmp_path / "64x64_diffusion.pt", tmp_path / "folder", "--recipe", "64x64_diffusion")
    assert difference("new order", UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet")) < 1e-5
    manifest = json.loads((tmp_path / "folder" / "manifest.json").read_text())
    assert manifest["settings"]["recipe"] == "64x64_diffusion"
    assert "recipe_sha256" not in manifest["settings"]


def test_what_is_not_that_network_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = peer("classes").weights()
    flags = flags_file(tmp_path, ADM)
    asked = (tmp_path / "a.pt", tmp_path / "folder", "--recipe", flags)

    def said(weights: dict[str, Tensor]) -> str:
        torch.save(weights, tmp_path / "a.pt")
        return refusal(capsys, *asked)

    assert "UNet of 218 keys that the recipe describes: 1 unknown (label_emb.weight)" in said(weights)
    doubled = {**weights, "input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}
    assert "an upsampler of OpenAI's" in said(doubled)
    ddpm_torch_file(tmp_path / "a.pt")
    assert "it is a checkpoint of ddpm-torch, and the recipe is of another project" in refusal(capsys, *asked)
    torch.save(weights, tmp_path / "a.pt")
    other = recipe_file(tmp_path / "cifar10.json")
    assert "is of another project" in refusal(capsys, tmp_path / "a.pt", tmp_path / "folder", "--recipe", other)
    assert not (tmp_path / "folder").exists()


LIKE_THEIRS = {
    **{"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5},
    **{"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32, "attention_head_dim": 32},
}


@pytest.mark.parametrize(
    ("options", "scheduler", "said"),
    [
        ({"freq_shift": 1}, None, "freq_shift=1, where it has 0"),
        ({"num_class_embeds": 10}, None, "num_class_embeds=10, where it has None or 1000"),
        ({"in_channels": 1, "out_channels": 1}, None, "in_channels=1, where it has 3"),
        ({"patch_size": 2, "sample_size": 16}, None, "patch_size=2, where it has 1"),
        ({"time_embedding_dim": 64}, None, "time_embedding_dim=64, where it has 128"),
        ({"attention_head_dim": 24}, None, "attention_head_dim=24, which does not divide its channels"),
        ({"attn_norm_num_groups": None}, None, "no norm of 32 groups in the middle"),
        ({"downsample_type": "resnet", "down_block_types": ("AttnDownBlock2D",) * 2}, None, "blocks of other kinds"),
        (
            {"down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",) * 2},
            None,
            "blocks of other kinds on the way up",
        ),
        (
            {
                "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
            },
            None,
            "changes the resolution by convolutions and by residual blocks",
        ),
        ({"block_out_channels": (64, 96)}, None, "block_out_channels=[64, 96], and the other side knows multiples"),
        ({"sample_size": (8, 16)}, None, "squares by their side"),
        ({}, DDPMScheduler(beta_schedule="scaled_linear"), "beta_schedule='scaled_linear'"),
        ({}, DDPMScheduler(beta_end=0.03), "has betas from 0.0001 to 0.03, and the other side 0.0001 to 0.02"),
        ({}, DDPMScheduler(prediction_type="v_prediction"), "prediction_type='v_prediction'"),
        ({"out_channels": 6}, DDPMScheduler(variance_type="learned"), "variance_type='learned'"),
        ({"out_channels": 6}, DDPMScheduler(), "6 output channels for variance_type 'fixed_small'"),
    ],
    ids=str,
)
def test_what_they_cannot_compute_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, scheduler: Any, said: str
) -> None:
    tiny_folder(tmp_path / "folder", scheduler, **{**LIKE_THEIRS, **options})
    sentence = refusal(capsys, tmp_path / "folder", tmp_path / "a.pt", "--to", "guided-diffusion")
    assert sentence.startswith("guided-diffusion has no such")
    assert said in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_network_of_ours_goes_to_them(tmp_path: Path) -> None:
    """And what a DDIM scheduler does not say of the variance is the smaller one."""
    tiny_folder(tmp_path / "folder", DDIMScheduler(), **LIKE_THEIRS)
    run(tmp_path / "folder", tmp_path / "a.pt", "--to", "guided-diffusion")
    flags = parse_flags((tmp_path / "a.txt").read_text())
    assert flags["sigma_small"] == "True"
    assert flags["attention_resolutions"] == "4"
    network = OpenAINetwork(32, (32, 64), 2, frozenset({1}), heads=(1, 2), learns_variance=False)
    weights = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {key: tuple(tensor.shape) for key, tensor in weights.items()} == network.shapes()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    unet = UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet")
    with torch.no_grad():
        assert (unet(x, TIMES).sample - network.forward(weights, x, TIMES)).abs().max() < 1e-5
