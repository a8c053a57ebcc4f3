"""Every setting acts: bits show what it changes, or the code reads it, or a sentence says that it does nothing."""

import ast
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_hf import DDIMScheduler, DDPMScheduler, UNet2DModel
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.training.evaluation_settings import EvaluationConfig
from ddpm_hf.training.idle import RULES, idle_settings
from ddpm_hf.training.settings import Config, TrainingConfig
from ddpm_hf.training.setup import _saved_scheduler

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "configs" / "train" / "digits.yaml"
MODEL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "mid_block_type": "UNetMidBlock2D",
}

# Another value of each setting, and the settings beside which it acts.
MODEL_CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sample_size": (16, {}),
    "in_channels": (3, {}),
    "out_channels": (2, {}),  # of a learned variance
    "center_input_sample": (True, {}),
    "time_embedding_type": ("learned", {"num_train_timesteps": 50}),
    "time_embedding_dim": (24, {}),
    "freq_shift": (1, {}),
    "flip_sin_to_cos": (False, {"flip_sin_to_cos": True}),
    "down_block_types": (("AttnDownBlock2D", "AttnDownBlock2D"), {}),
    "mid_block_type": (None, {}),
    "up_block_types": (("AttnUpBlock2D", "AttnUpBlock2D"), {}),
    "block_out_channels": ((8, 16), {}),
    "layers_per_block": (3, {}),
    "mid_block_scale_factor": (2.0, {}),
    "downsample_padding": (0, {"downsample_padding": 1}),
    "downsample_type": ("resnet", {"down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D")}),
    "upsample_type": ("resnet", {}),
    "dropout": (0.5, {"dropout": 0.0}),
    "act_fn": ("gelu", {}),
    "attention_head_dim": (4, {}),
    "norm_num_groups": (2, {}),
    "attn_norm_num_groups": (2, {}),
    "norm_eps": (0.1, {}),
    "resnet_time_scale_shift": ("scale_shift", {}),
    "add_attention": (False, {}),
    "class_embed_type": ("timestep", {"num_class_embeds": 10}),
    "num_class_embeds": (10, {}),
    "num_train_timesteps": (60, {"time_embedding_type": "learned", "num_train_timesteps": 50}),
    "patch_size": (2, {}),
    "time_proj_dim": (16, {}),
}
DIFFUSION_CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_train_timesteps": (40, {}),
    "beta_start": (0.01, {}),
    "beta_end": (0.3, {}),
    "beta_schedule": ("squaredcos_cap_v2", {}),
    "trained_betas": ([0.05] * 20, {}),
    "variance_type": ("fixed_large", {"variance_type": "fixed_small"}),
    "clip_sample": (False, {"clip_sample": True}),
    "prediction_type": ("sample", {"prediction_type": "epsilon"}),
    "thresholding": (True, {"sample_max_value": 2.0}),
    "dynamic_thresholding_ratio": (0.5, {"thresholding": True, "sample_max_value": 5.0}),
    "clip_sample_range": (0.5, {"clip_sample": True}),
    "sample_max_value": (1.5, {"thresholding": True, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 5.0}),
    "timestep_spacing": ("trailing", {}),
    "steps_offset": (2, {}),
    "rescale_betas_zero_snr": (True, {"prediction_type": "v_prediction"}),
}


@cache
def base() -> Config:
    config = parse_config([f"--config={DIGITS}", "--quiet"], DIGITS)
    diffusion = {
        **config.diffusion,
        "num_train_timesteps": 20,
        "beta_start": 0.001,
        "beta_end": 0.2,
        "beta_schedule": "linear",
    }
    evaluation = replace(config.evaluation, num_inference_steps=5)
    return replace(config, model={**config.model, **MODEL}, diffusion=diffusion, evaluation=evaluation)


def with_(config: Config, group: str, changes: dict[str, Any]) -> Config:
    """The settings with changes, and with as many channels out as in, or a learned variance where there are more."""
    values = {group: {**getattr(config, group), **changes}}
    if "in_channels" in changes:
        values["model"]["out_channels"] = changes["in_channels"]
    if changes.get("out_channels") == 2:
        values["diffusion"] = {**config.diffusion, "variance_type": "learned"}
        values["training"] = replace(config.training, loss="hybrid")  # type: ignore[assignment]
    return replace(config, **values)  # type: ignore[arg-type]


def of_the_network(config: Config) -> list[torch.Tensor]:
    """The weights that a seed gives, and the output of a training step's pass."""
    torch.manual_seed(0)
    unet = UNet2DModel(**config.model).train()
    side = config.model["sample_size"]
    x = torch.randn(2, config.model["in_channels"], side, side, generator=torch.Generator().manual_seed(1))
    labels = None if config.model["num_class_embeds"] is None else torch.tensor([1, 2])
    with torch.no_grad():
        return [*unet.state_dict().values(), unet(x, torch.tensor([3, 7]), labels).sample]


def of_the_process(config: Config) -> list[torch.Tensor]:
    """What a network is trained on, and what the training's and the saved scheduler make of a network's outputs."""
    scheduler = DDPMScheduler(**config.diffusion)
    saved = _saved_scheduler(config, scheduler)
    assert isinstance(saved, DDIMScheduler)
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 2, 1, 8, 8, generator=generator)
    t = torch.tensor([3, 17])
    found = [scheduler.diffusion.q_sample(x_0, t, noise), scheduler.denoiser.target(x_0, noise, t)]
    for kind in (scheduler, saved):
        kind.set_timesteps(config.evaluation.num_inference_steps)
        x_t = noise
        for time in kind.timesteps:
            x_t = kind.step(x_0, time, x_t, generator=torch.Generator().manual_seed(2)).prev_sample
        found += [kind.timesteps, x_t]
    return found


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) != len(other) or not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", base().model)
def test_every_setting_of_the_network_changes_the_network(name: str) -> None:
    value, beside = MODEL_CHANGES[name]
    before = with_(base(), "model", beside)
    after = with_(before, "model", {name: value})
    assert f"model.{name}" not in idle_settings(after)
    assert differ(of_the_network(before), of_the_network(after))


@pytest.mark.parametrize("name", base().diffusion)
def test_every_setting_of_the_process_changes_training_or_the_saved_scheduler(name: str) -> None:
    value, beside = DIFFUSION_CHANGES[name]
    before = with_(base(), "diffusion", beside)
    after = with_(before, "diffusion", {name: value})
    assert f"diffusion.{name}" not in idle_settings(after)
    assert differ(of_the_process(before), of_the_process(after))


# Settings by which others do nothing, and these with another value than their default.
IDLE: dict[str, tuple[str, dict[str, Any], Any]] = {
    "freq_shift": ("model", {"time_embedding_type": "learned", "num_train_timesteps": 50}, 2),
    "flip_sin_to_cos": ("model", {"time_embedding_type": "learned", "num_train_timesteps": 50}, False),
    "num_train_timesteps": ("model", {}, 50),
    "attn_norm_num_groups": ("model", {"add_attention": False}, 2),
    "mid_block_scale_factor": ("model", {"mid_block_type": None}, 2.0),
    "add_attention": ("model", {"mid_block_type": None}, False),
    "downsample_padding": ("model", {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}, 0),
    "downsample_type": ("model", {"down_block_types": ("DownBlock2D", "DownBlock2D")}, "resnet"),
    "upsample_type": ("model", {"up_block_types": ("UpBlock2D", "UpBlock2D")}, "resnet"),
    "beta_start": ("diffusion", {"beta_schedule": "const"}, 0.01),
    "beta_end": ("diffusion", {"beta_schedule": "laplace"}, 0.3),
    "beta_schedule": ("diffusion", {"trained_betas": [0.05] * 20}, "sigmoid"),
    "dynamic_thresholding_ratio": ("diffusion", {"thresholding": False}, 0.5),
    "sample_max_value": ("diffusion", {"thresholding": False}, 2.0),
    "clip_sample_range": ("diffusion", {"clip_sample": False}, 0.5),
    "clip_sample": ("diffusion", {"thresholding": True}, False),
    "steps_offset": ("diffusion", {"timestep_spacing": "trailing"}, 2),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_is_said_to_do_nothing_does_nothing(name: str) -> None:
    group, beside, value = IDLE[name]
    before = with_(base(), group, beside)
    after = with_(before, group, {name: value})
    assert f"{group}.{name} is {value} and does nothing without" in idle_settings(after)[f"{group}.{name}"]
    look = of_the_network if group == "model" else of_the_process
    assert not differ(look(before), look(after))


def test_each_rule_names_settings() -> None:
    groups = {"data": DataConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}
    known = {field.name for field in fields(Config)}
    known |= {f"{group}.{field.name}" for group, kind in groups.items() for field in fields(kind)}
    known |= {f"{group}.{name}" for group in ("model", "diffusion") for name in getattr(base(), group)}
    assert {name for rule in RULES for name in rule.names} <= known


@cache
def attributes_read() -> set[str]:
    """Names of attributes that the product's code reads, outside the modules that only check settings."""
    modules = [ROOT / "train_accelerate.py", *(ROOT / "ddpm_hf").rglob("*.py")]
    checks = ("settings.py", "idle.py", "command_line.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules if path.name not in checks]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("kind", [Config, DataConfig, TrainingConfig, EvaluationConfig])
def test_every_other_setting_is_read(kind: Any) -> None:
    """Those of crops, of the evaluation's timestep spacing and of averages are read by properties of their own."""
    names = {field.name for field in fields(kind)}
    by_property = {"random_crop", "timestep_spacing", "ema_decay", "ema_snapshot_every"}
    assert names - attributes_read() <= by_property


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.p2_gamma", "3"], "training.p2_gamma is 3.0 and does nothing without training.loss_weighting p2"),
        (
            ["--data.shuffle_buffer=5"],
            "data.shuffle_buffer is 5 and does nothing without data.streaming; give that too",
        ),
        (["--hub_strategy", "checkpoints"], "hub_strategy is checkpoints and does nothing without push_to_hub"),
        (["--data.revision", "main"], "data.revision is main and must be null, as digits is on this machine"),
        (["--data.config", "plain"], "data.config is plain and must be null, as digits is on this machine"),
        (
            ["--training.ema_snapshot_every=5"],
            "training.ema_snapshot_every is 5 and does nothing without training.",
        ),
        (["--evaluation.best_by", "recall"], "evaluation.best_by is recall and does nothing without evaluation.every"),
        (["--evaluation.extractor_weights", "x"], "evaluation.extractor_weights is x, and the extractor digits takes"),
        (
            ["--diffusion.timestep_spacing=trailing", "--evaluation.timestep_spacing=linspace"],
            "diffusion.timestep_spacing is trailing and must be leading or linspace, as evaluation.timestep_spacing is",
        ),
    ],
)
def test_what_does_nothing_is_refused_where_it_is_typed(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(words, DIGITS)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_what_does_nothing_in_a_recipe_is_noted(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {p2_gamma: 0.5}\nmodel: {sample_size: 32}\n")
    notes = idle_settings(parse_config(["--config", str(recipe)], DIGITS))
    assert notes == {
        "training.p2_gamma": "training.p2_gamma is 0.5 and does nothing without training.loss_weighting p2"
    }


@pytest.mark.parametrize(
    ("own", "asked", "saved"),
    [("leading", None, "leading"), ("trailing", None, "trailing"), ("leading", "linspace", "linspace")],
)
def test_the_saved_scheduler_has_the_spacing_that_was_asked_for(own: str, asked: str | None, saved: str) -> None:
    config = with_(base(), "diffusion", {"timestep_spacing": own})
    config = replace(config, evaluation=replace(config.evaluation, timestep_spacing=asked))
    assert _saved_scheduler(config, DDPMScheduler(**config.diffusion)).config.timestep_spacing == saved
