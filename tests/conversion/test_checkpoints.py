"""Checkpoints of other projects: converted networks compute what theirs do, and come back with every bit."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.conversion.layout_tables import LAYOUTS
from tests.conversion_files import (
    RECIPE,
    YML,
    ddpm_torch_file,
    ermongroup_list,
    recipe_file,
    refusal,
    run,
    tiny_folder,
)
from tests.peers import ddpm_torch_forward, ddpm_torch_weights, ermongroup_forward, ermongroup_weights

DOCUMENT = Path(__file__).parents[2] / "docs" / "conversion.md"


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([3, 421])


def output_of(unet: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = unet(IMAGES, TIMES).sample
    return output


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ch_multipliers": (1, 1, 2), "apply_attn": (True, False, True), "num_res_blocks": 1},
        {"ch_multipliers": (1,), "apply_attn": (False,), "in_channels": 1, "out_channels": 1, "time_embedding_dim": 64},
    ],
    ids=["three levels", "attention at both ends", "one level, free time embedding"],
)
def test_a_ddpm_torch_network_computes_the_same_and_comes_back_bitwise(tmp_path: Path, options: Any) -> None:
    raw, average = ddpm_torch_file(tmp_path / "a.pt", **options)
    run(tmp_path / "a.pt", tmp_path / "folder", "--sample_size", 16)
    images = IMAGES[:, : average["in_conv.weight"].shape[1]]
    for weights, variant in ((average, None), (raw, "non_ema")):
        unet = UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet", variant=variant)
        with torch.no_grad():
            difference = unet(images, TIMES).sample - ddpm_torch_forward(weights, images, TIMES)
        assert difference.abs().max() < 1e-5

    run(tmp_path / "folder", tmp_path / "back.pt", "--to", "ddpm-torch")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_same(back["model"], raw)
    assert_same(back["ema"]["shadow"], average)
    assert (back["ema"]["decay"], back["ema"]["num_updates"], back["epoch"]) == (0.9999, 795_599, 2040)


def test_an_ermongroup_network_computes_the_same_and_comes_back_bitwise(tmp_path: Path) -> None:
    raw, average = ermongroup_list(tmp_path / "ckpt.pth")
    run(tmp_path / "ckpt.pth", tmp_path / "folder", "--recipe", recipe_file(tmp_path / "cifar10.yml", YML))
    for weights, variant in ((average, None), (raw, "non_ema")):
        unet = UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet", variant=variant)
        assert (output_of(unet) - ermongroup_forward(weights, IMAGES, TIMES)).abs().max() < 1e-5

    run(tmp_path / "folder", tmp_path / "back.pth", "--to", "ermongroup-ddim")
    parallel, _, epoch, step, shadow = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same({key.removeprefix("module."): tensor for key, tensor in parallel.items()}, raw)
    assert all(key.startswith("module.") for key in parallel)
    assert_same(shadow, average)
    assert (epoch, step) == (7, 5000)
    recipe = yaml.safe_load((tmp_path / "back.yml").read_text())
    assert {name: recipe[name] for name in ("data", "model", "diffusion")} == {
        name: YML[name] for name in ("data", "model", "diffusion")
    }


def test_plain_weights_as_pytorch_diffusion_publishes_them(tmp_path: Path) -> None:
    weights = ermongroup_weights()
    torch.save(weights, tmp_path / "ema_model-790000.ckpt")
    run(tmp_path / "ema_model-790000.ckpt", tmp_path / "folder", "--sample_size", 32)
    run(tmp_path / "folder", tmp_path / "back.ckpt", "--to", "ermongroup-ddim")
    assert_same(torch.load(tmp_path / "back.ckpt", weights_only=True), weights)
    run(tmp_path / "ema_model-790000.ckpt", tmp_path / "other.pt", "--sample_size", 32, "--to", "ddpm-torch")
    other = torch.load(tmp_path / "other.pt", weights_only=True)["model"]
    difference = ddpm_torch_forward(other, IMAGES, TIMES) - ermongroup_forward(weights, IMAGES, TIMES)
    assert difference.abs().max() < 1e-5


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tensor]:
    """A converted network, and what the original says."""
    folder = tmp_path_factory.mktemp("converted")
    _, average = ddpm_torch_file(folder / "a.pt")
    run(folder / "a.pt", folder / "pipeline", "--sample_size", 16)
    unet = UNet2DModel.from_pretrained(folder / "pipeline", subfolder="unet")
    return unet, ddpm_torch_forward(average, IMAGES, TIMES)


@pytest.mark.parametrize(
    "change",
    [
        {"downsample_padding": 1},
        {"flip_sin_to_cos": True},
        {"freq_shift": 0},
        {"attention_head_dim": 8},
        {"norm_eps": 1e-2},
    ],
    ids=str,
)
def test_each_setting_of_the_config_matters(converted: tuple[Any, Tensor], change: dict[str, Any]) -> None:
    """The comparison with their network would notice another value of any of them."""
    unet, wanted = converted
    other = UNet2DModel.from_config({**unet.config, **change}).eval()
    other.load_state_dict(unet.state_dict())
    assert (output_of(other) - wanted).abs().max() > 1e-4


def test_the_older_ddpm_torch_has_another_eps(tmp_path: Path) -> None:
    _, average = ddpm_torch_file(tmp_path / "a.pt")
    average["in_conv.weight"] *= 1e-3  # quiet activations, on which eps tells
    average["in_conv.bias"] *= 1e-3
    torch.save({"model": average}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "folder", "--sample_size", 16, "--norm_eps", 1e-5)
    unet = UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet")
    assert (output_of(unet) - ddpm_torch_forward(average, IMAGES, TIMES, eps=1e-5)).abs().max() < 1e-5
    assert (output_of(unet) - ddpm_torch_forward(average, IMAGES, TIMES)).abs().max() > 1e-2


def test_plain_diffusers_loads_what_a_recipe_and_a_checkpoint_make(tmp_path: Path) -> None:
    _, average = ddpm_torch_file(tmp_path / "a.pt", prefix="module.")
    run(tmp_path / "a.pt", tmp_path / "folder", "--recipe", recipe_file(tmp_path / "cifar10.json"))
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert type(pipe) is diffusers.DDPMPipeline
    assert (output_of(pipe.unet) - ddpm_torch_forward(average, IMAGES, TIMES)).abs().max() < 1e-5
    assert (pipe.unet.config.sample_size, pipe.unet.config.dropout) == (32, 0.1)
    process = {name: pipe.scheduler.config[name] for name in ("num_train_timesteps", "beta_schedule", "variance_type")}
    assert process == {"num_train_timesteps": 500, "beta_schedule": "scaled_linear", "variance_type": "fixed_large"}

    run(tmp_path / "folder", tmp_path / "back.pt", "--to", "ddpm-torch")
    back = json.loads((tmp_path / "back.json").read_text())
    assert back["diffusion"] == RECIPE["diffusion"]
    assert back["model"] == RECIPE["model"]


def test_the_manifest_says_what_it_came_from_without_a_path(tmp_path: Path) -> None:
    raw, _ = ddpm_torch_file(tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "folder", "--sample_size", 16)
    run(tmp_path / "folder", tmp_path / "back.pt", "--to", "ddpm-torch")
    for file in (tmp_path / "folder" / "manifest.json", tmp_path / "back.manifest.json"):
        text = file.read_text()
        assert str(tmp_path) not in text
        manifest = json.loads(text)
        assert manifest["parameters"] == sum(tensor.numel() for tensor in raw.values())
        assert len(manifest["environment"]["torch"]) > 2
    settings = json.loads((tmp_path / "folder" / "manifest.json").read_text())["settings"]
    assert settings["source"] == "a.pt"
    assert settings["source_sha256"] == sha256(tmp_path / "a.pt")
    assert len(settings["assumed"]) == 1


def sha256(path: Path) -> str:
    found = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    return found.stdout.split()[0]


def test_a_folder_with_pickled_weights_of_old_names_becomes_safetensors(tmp_path: Path) -> None:
    unet = tiny_folder(tmp_path / "old", DDIMScheduler())
    file = tmp_path / "old" / "unet" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in load_file(file).items():
        for new_name, old_name in names.items():
            key = key.replace(f".{new_name}.", f".{old_name}.")
        old[key] = tensor
    assert any("proj_attn" in key for key in old)
    file.unlink()
    torch.save(old, file.with_suffix(".bin"))
    run(tmp_path / "old", tmp_path / "new")
    assert list((tmp_path / "new").rglob("*.bin")) == []
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "new")
    assert type(pipe) is diffusers.DDIMPipeline
    assert_same(pipe.unet.state_dict(), unet.state_dict())


def test_the_folder_of_a_single_unet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = tiny_folder(tmp_path / "pipeline")
    run(tmp_path / "pipeline" / "unet", tmp_path / "new")
    assert "so assumed: the noise schedule is Ho et al.'s" in capsys.readouterr().out
    assert_same(DDPMCustomPipeline.from_pretrained(tmp_path / "new").unet.state_dict(), unet.state_dict())
    run(tmp_path / "pipeline", tmp_path / "a.pt", "--to", "ddpm-torch")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert sorted(content) == ["epoch", "model"]
    assert (output_of(unet) - ddpm_torch_forward(content["model"], IMAGES, TIMES)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "scheduler", "said"),
    [
        ({"downsample_padding": 1}, None, "downsample_padding=1, where it has 0"),
        ({"attention_head_dim": 8}, None, "attention_head_dim=8"),
        ({"num_class_embeds": 10}, None, "num_class_embeds=10"),
        ({"norm_num_groups": 16}, None, "norm_num_groups=16, where it has 32"),
        ({"patch_size": 2}, None, "patch_size=2, where it has 1"),
        (
            {
                "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            },
            None,
            "residual blocks that change the resolution",
        ),
        ({}, DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "beta_schedule='squaredcos_cap_v2'"),
        ({}, DDPMScheduler(prediction_type="v_prediction"), "prediction_type='v_prediction'"),
        ({}, DDPMScheduler(trained_betas=[0.1] * 1000), "trained_betas of its own"),
        ({}, DDPMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
    ],
    ids=str,
)
def test_what_the_other_project_cannot_compute_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, scheduler: Any, said: str
) -> None:
    tiny_folder(tmp_path / "folder", scheduler, **options)
    for layout in ("ddpm-torch", "ermongroup-ddim"):
        sentence = refusal(capsys, tmp_path / "folder", tmp_path / "a.pt", "--to", layout)
        assert sentence.startswith(f"{layout} has no such")
        assert said in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


class Bomb:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_is_not_tensors_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"in_conv.weight": torch.ones(1)}, "epoch": Bomb(tmp_path / "boom")}, tmp_path / "a.pt")
    sentence = refusal(capsys, tmp_path / "a.pt", tmp_path / "folder", "--sample_size", 16)
    assert "holds more than tensors (posix.mkdir)" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: weights.pop("middle.1.project_in.bias"), "1 missing (middle.1.project_in.bias)"),
        (lambda weights: weights.pop("out_conv.2.weight"), "1 missing key (out_conv.2.weight)"),
        (lambda weights: weights.update({"extra": torch.ones(1)}), "1 unknown (extra)"),
        (
            lambda weights: weights.update({"middle.2.conv2.bias": torch.ones(3)}),
            "1 of another shape (middle.2.conv2.bias is (3,), not (64,))",
        ),
        (lambda weights: weights.pop("downsamples.level_0.0.conv1.weight"), "no residual block in level 0"),
        (lambda weights: weights.update({"in_conv.weight": torch.ones(16, 3, 3, 3)}), "first convolution 16"),
        (lambda weights: weights.update({"in_conv.weight": torch.ones(())}), "in_conv.weight is (), no layer's weight"),
        (lambda weights: weights.update({"embed.0.bias": 3}), "1 of its entries are not weights (embed.0.bias)"),
        (lambda weights: weights.update({"embed.0.bias": torch.ones(128).half()}), "torch.float16, torch.float32"),
        (
            lambda weights: [
                weights.pop(f"downsamples.level_{i}.2.1.{kind}") for i in (0, 1) for kind in ("weight", "bias")
            ],
            "changes resolution without convolutions",
        ),
    ],
    ids=[
        "missing",
        "missing output",
        "unknown",
        "shape",
        "no level",
        "first width",
        "no layer",
        "no tensor",
        "types",
        "pooling",
    ],
)
def test_weights_that_are_not_the_networks_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    weights = ddpm_torch_weights()
    spoil(weights)
    torch.save({"model": weights}, tmp_path / "a.pt")
    assert said in refusal(capsys, tmp_path / "a.pt", tmp_path / "folder", "--sample_size", 16)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("init_conv.weight", "time_mlp.1.weight"), "denoising-diffusion-pytorch (lucidrains)"),
        (("_model.in_conv.weight",), "block_size above 1"),
        (("time_embedding.linear_1.weight",), "give the folder"),
        (
            ("a", "b", "c", "d"),
            "of no layout that is known (ddpm-torch, ermongroup-ddim, guided-diffusion); its first keys are a, b, c,",
        ),
    ],
    ids=["lucidrains", "pixel shuffle", "diffusers without config", "unknown"],
)
def test_other_layouts_are_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: tuple[str, ...], said: str
) -> None:
    torch.save({key: torch.ones(1) for key in keys}, tmp_path / "a.pt")
    assert said in refusal(capsys, tmp_path / "a.pt", tmp_path / "folder")


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ddpm_torch_file(tmp_path / "whole.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    (tmp_path / "model.ckpt-790000.index").write_bytes(b"\0")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "nothing").mkdir()
    new = tmp_path / "folder"
    assert "is empty" in refusal(capsys, tmp_path / "empty.pt", new)
    assert "no file of torch.save" in refusal(capsys, tmp_path / "text.pt", new)
    assert "no whole file of torch.save" in refusal(capsys, tmp_path / "half.pt", new)
    assert "does not exist" in refusal(capsys, tmp_path / "absent.pt", new)
    assert "TensorFlow" in refusal(capsys, tmp_path / "model.ckpt-790000", new)
    assert "holds list, not a network's weights" in refusal(capsys, tmp_path / "list.pt", new)
    assert "not a model's folder" in refusal(capsys, tmp_path / "nothing", new)
    assert "give --recipe or --sample_size" in refusal(capsys, tmp_path / "whole.pt", new)
    (tmp_path / "nothing" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert "holds a AutoencoderKL" in refusal(capsys, tmp_path / "nothing", new)


def test_folders_that_are_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_folder(tmp_path / "folder")
    weights = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    raw = weights.with_name("diffusion_pytorch_model.non_ema.safetensors")
    whole = weights.read_bytes()
    save_file({"conv_in.bias": torch.ones(32)}, raw)
    assert "does not hold this UNet" in refusal(capsys, tmp_path / "folder", tmp_path / "new")
    raw.write_bytes(whole[:5000])
    assert "Unable to load weights" in refusal(capsys, tmp_path / "folder", tmp_path / "new")
    raw.unlink()
    weights.write_bytes(whole[:5000])
    assert "is damaged" in refusal(capsys, tmp_path / "folder", tmp_path / "new")
    weights.unlink()
    assert "no weights" in refusal(capsys, tmp_path / "folder", tmp_path / "new")
    torch.save({"conv_in.bias": torch.ones(32)}, weights.with_suffix(".bin"))
    assert "does not hold this UNet" in refusal(capsys, tmp_path / "folder", tmp_path / "new")
    torch.save({"conv_in.bias": Bomb(tmp_path / "boom")}, weights.with_suffix(".bin"))
    assert "holds more than tensors" in refusal(capsys, tmp_path / "folder", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_destination_that_exists_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_folder(tmp_path / "folder")
    (tmp_path / "a.json").write_text("mine")
    for destination in ("folder", "a.pt"):
        sentence = refusal(capsys, tmp_path / "folder", tmp_path / destination, "--to", "ddpm-torch")
        assert "exists and is left as it is" in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]
    assert (tmp_path / "a.json").read_text() == "mine"


def test_names_that_would_collide_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_folder(tmp_path / "folder", sample_size=(8, 16))
    arguments = (tmp_path / "folder", tmp_path / "a.json", "--to", "ddpm-torch")
    assert "is the name of a recipe" in refusal(capsys, *arguments)
    arguments = (tmp_path / "folder", tmp_path / "a.ckpt", "--to", "ermongroup-ddim")
    assert "has sample_size=" in refusal(capsys, *arguments)


def test_the_documented_table_is_the_one_that_is_used() -> None:
    """Every name of docs/conversion.md, in its order."""
    text = DOCUMENT.read_text().partition("## Names")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")
    ]
    for column, layout in enumerate(LAYOUTS.values(), start=1):
        table = {row[0]: row[column] for row in rows}
        for names in (layout.stem, layout.resnet, layout.attention):
            for ours, theirs in names.items():
                assert table[ours] == theirs
        for kind, place in layout.levels.items():
            assert table[kind] == place


def test_a_trainers_file_of_lucidrains_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"model.init_conv.weight": torch.ones(2)}
    ema = {"initted": torch.tensor(True), "step": torch.tensor(5), "ema_model.model.init_conv.weight": torch.ones(2)}
    torch.save({"step": 5, "model": weights, "opt": {}, "ema": ema, "scaler": None}, tmp_path / "model-1.pt")
    assert "lucidrains" in refusal(capsys, tmp_path / "model-1.pt", tmp_path / "new")
