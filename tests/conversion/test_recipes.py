"""Recipes of other projects: each becomes one of ours, or is refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.command_line import parse_config
from tests.conversion_files import RECIPE, YML, ddpm_torch_file, recipe_file, refusal, run
from tests.peers import ddpm_torch_weights, ermongroup_weights


def test_a_recipe_becomes_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {**RECIPE, "model": {**RECIPE["model"], "hid_channels": 128, "ch_multipliers": [1, 2, 2, 2]}}
    content["model"]["apply_attn"] = [False, True, False, False]
    content["diffusion"] = {**RECIPE["diffusion"], "timesteps": 1000, "beta_schedule": "linear"}
    run(recipe_file(tmp_path / "cifar10.json", content), tmp_path / "mine.yaml")
    mine = parse_config(["--config", str(tmp_path / "mine.yaml")], tmp_path / "mine.yaml")
    ours = Path(__file__).parents[2] / "configs" / "train" / "cifar10.yaml"
    wanted = parse_config(["--config", str(ours)], ours)
    assert mine.data == wanted.data.__class__(name="uoft-cs/cifar10", random_flip=True)
    for name in ("steps", "batch_size", "learning_rate", "betas", "warmup_steps", "max_grad_norm", "ema_decay"):
        assert getattr(mine.training, name) == getattr(wanted.training, name), name
    for name in ("sample_size", "block_out_channels", "down_block_types", "up_block_types", "dropout"):
        assert list_of(mine.model[name]) == list_of(wanted.model[name]), name
    assert mine.model["freq_shift"] == 1
    assert (mine.diffusion["variance_type"], mine.training.loss) == ("fixed_large", "simple")
    content["diffusion"] |= {"model_var_type": "learned", "loss_type": "kl"}
    run(recipe_file(tmp_path / "bound.json", content), tmp_path / "bound.yaml")
    bound = parse_config(["--config", str(tmp_path / "bound.yaml")], tmp_path / "bound.yaml")
    assert (bound.diffusion["variance_type"], bound.training.loss, bound.model["out_channels"]) == ("learned", "kl", 6)
    assert "becomes a .yaml" in refusal(capsys, tmp_path / "cifar10.json", tmp_path / "mine.json")


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {**RECIPE["model"], "block_size": 2}}, "block_size=2"),
        ({"model": {**RECIPE["model"], "resample_with_conv": False}}, "resample_with_conv=false"),
        ({"model": {**RECIPE["model"], "heads": 2}}, "sets model.heads"),
        ({"model": {**RECIPE["model"], "ch_multipliers": 3}}, "wrong kind"),
        ({"extra": 1}, "sets extra"),
        ({"diffusion": {**RECIPE["diffusion"], "beta_schedule": "cosine"}}, "beta_schedule='cosine'"),
        ({"diffusion": {**RECIPE["diffusion"], "loss_type": "l1"}}, "loss_type='l1'"),
        ({"diffusion": {**RECIPE["diffusion"], "model_var_type": "learned"}}, "teaches no variance"),
        ({"diffusion": {}}, "lacks 'timesteps'"),
        ({"train": {"lr": 1e-4}}, "lacks train.batch_size"),
        ({"dataset": "faces"}, "does not name one of mnist, cifar10"),
    ],
    ids=str,
)
def test_a_recipe_without_counterpart_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    path = recipe_file(tmp_path / "a.json", {**RECIPE, **change})
    sentence = refusal(capsys, path, tmp_path / "a.yaml")
    assert sentence.startswith(f"the recipe {path}")
    assert said in sentence


@pytest.mark.parametrize("name", ["linear", "quad", "const", "jsd", "sigmoid", "warmup10"])
def test_noise_schedules_go_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    torch.save(ermongroup_weights(), tmp_path / "a.ckpt")
    recipe = {**YML, "diffusion": {**YML["diffusion"], "beta_schedule": name}}
    arguments = (tmp_path / "a.ckpt", tmp_path / "folder", "--recipe", recipe_file(tmp_path / "a.yml", recipe))
    if name == "warmup10":
        assert "beta_schedule='warmup10'" in refusal(capsys, *arguments)
        return
    run(*arguments)
    run(tmp_path / "folder", tmp_path / "back.ckpt", "--to", "ermongroup-ddim")
    assert yaml.safe_load((tmp_path / "back.yml").read_text())["diffusion"] == recipe["diffusion"]


def test_channels_for_a_learned_variance_need_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(ddpm_torch_weights(out_channels=6), tmp_path / "a.pt")
    assert "6 output channels for 3" in refusal(capsys, tmp_path / "a.pt", tmp_path / "folder", "--sample_size", 16)
    learned = {**RECIPE, "diffusion": {**RECIPE["diffusion"], "model_var_type": "learned"}}
    run(tmp_path / "a.pt", tmp_path / "folder", "--recipe", recipe_file(tmp_path / "a.json", learned))
    pipe = DDPMCustomPipeline.from_pretrained(tmp_path / "folder")
    assert pipe.scheduler.config.variance_type == "learned"
    assert pipe(seeds=[0], num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_the_recipe_of_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ddpm_torch_file(tmp_path / "a.pt")
    other = {**RECIPE, "model": {**RECIPE["model"], "apply_attn": [False, False, True]}}
    path = recipe_file(tmp_path / "other.json", other)
    sentence = refusal(capsys, tmp_path / "a.pt", tmp_path / "folder", "--recipe", path)
    assert f"the recipe {path} is of another network: its down_block_types" in sentence
