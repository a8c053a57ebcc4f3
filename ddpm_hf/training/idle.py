"""Settings that do nothing beside the others: named, and refused where they were just typed.

Nothing here loads torch.
"""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, Final, NamedTuple

from ddpm_hf.settings import flat, settings_group
from ddpm_hf.training.settings import Config


class Rule(NamedTuple):
    """Settings, whether they act in a run, and what they act with."""

    names: tuple[str, ...]
    acts: Callable[[Config], bool]
    needs: str


def _has_attention(config: Config) -> bool:
    model = config.network
    blocks = (*model["down_block_types"], *model["up_block_types"])
    return any(block.startswith("Attn") for block in blocks) or (
        model["mid_block_type"] is not None and model["add_attention"]
    )


def _has_attention_on(config: Config, side: str) -> bool:
    return any(block.startswith("Attn") for block in config.network[f"{side}_block_types"])


def _has_strided_convolution(config: Config) -> bool:
    residual = ("Resnet", "Attn") if config.network["downsample_type"] == "resnet" else ("Resnet",)
    return not all(block.startswith(residual) for block in config.network["down_block_types"][:-1])


RULES: Final = (
    Rule(("training.vlb_weight",), lambda c: c.training.loss == "hybrid", "training.loss hybrid"),
    Rule(
        ("training.min_snr_gamma",),
        lambda c: c.training.loss_weighting == "min_snr",
        "training.loss_weighting min_snr",
    ),
    Rule(("training.p2_gamma",), lambda c: c.training.loss_weighting == "p2", "training.loss_weighting p2"),
    Rule(("training.ema_snapshot_every",), lambda c: bool(c.training.ema_sigma_rels), "training.ema_sigma_rels"),
    Rule(
        ("evaluation.extractor_weights", "evaluation.extractor_channels", "evaluation.metrics", "evaluation.best_by"),
        lambda c: c.evaluation.extractor is not None,
        "evaluation.extractor",
    ),
    Rule(
        ("evaluation.held_out_split",),
        lambda c: c.evaluation.extractor is not None or c.evaluation.loss_every is not None,
        "evaluation.extractor or evaluation.loss_every",
    ),
    Rule(("evaluation.best_by",), lambda c: c.evaluation.every is not None, "evaluation.every"),
    Rule(("data.shuffle_buffer",), lambda c: c.data.streaming, "data.streaming"),
    Rule(("data.cache_dir",), lambda c: not c.data.streaming, "data.streaming false"),
    Rule(("data.resize_filter",), lambda c: c.data.resolution is not None, "data.resolution"),
    Rule(("init_partial",), lambda c: c.init_from is not None, "init_from"),
    Rule(("hub_private_repo", "hub_license", "hub_strategy"), lambda c: c.push_to_hub, "push_to_hub"),
    Rule(
        ("model.freq_shift", "model.flip_sin_to_cos"),
        lambda c: c.network["time_embedding_type"] == "positional",
        "model.time_embedding_type positional",
    ),
    Rule(
        ("model.num_train_timesteps",),
        lambda c: c.network["time_embedding_type"] == "learned",
        "model.time_embedding_type learned",
    ),
    Rule(("model.attention_head_dim",), _has_attention, "attention in a block"),
    Rule(
        ("model.attn_norm_num_groups",),
        lambda c: c.network["mid_block_type"] is not None and c.network["add_attention"],
        "attention in the middle block",
    ),
    Rule(
        ("model.mid_block_scale_factor", "model.add_attention"),
        lambda c: c.network["mid_block_type"] is not None,
        "model.mid_block_type UNetMidBlock2D",
    ),
    Rule(
        ("model.downsample_type",), lambda c: _has_attention_on(c, "down"), "AttnDownBlock2D in model.down_block_types"
    ),
    Rule(("model.upsample_type",), lambda c: _has_attention_on(c, "up"), "AttnUpBlock2D in model.up_block_types"),
    Rule(
        ("model.downsample_padding",),
        lambda c: _has_strided_convolution(c),
        "a block in model.down_block_types that halves the resolution by a convolution, such as DownBlock2D",
    ),
    Rule(
        ("model.downsample_padding", "model.downsample_type", "model.upsample_type"),
        lambda c: len(c.network["block_out_channels"]) > 1,
        "several model.block_out_channels",
    ),
    Rule(
        ("diffusion.beta_start",),
        lambda c: _has_betas(c) and c.diffusion["beta_schedule"] != "const",
        "a diffusion.beta_schedule that begins with it, such as linear",
    ),
    Rule(
        ("diffusion.beta_end",), lambda c: _has_betas(c), "a diffusion.beta_schedule that ends with it, such as linear"
    ),
    Rule(("diffusion.beta_schedule",), lambda c: c.diffusion["trained_betas"] is None, "diffusion.trained_betas null"),
    Rule(
        ("diffusion.dynamic_thresholding_ratio", "diffusion.sample_max_value"),
        lambda c: c.diffusion["thresholding"],
        "diffusion.thresholding",
    ),
    Rule(
        ("diffusion.clip_sample_range",),
        lambda c: c.diffusion["clip_sample"] and not c.diffusion["thresholding"],
        "diffusion.clip_sample, without diffusion.thresholding",
    ),
    Rule(("diffusion.clip_sample",), lambda c: not c.diffusion["thresholding"], "diffusion.thresholding false"),
    Rule(("diffusion.steps_offset",), lambda c: c.timestep_spacing == "leading", "the timestep spacing leading"),
)
"""A setting with several rules acts where all of them say so."""


def _has_betas(config: Config) -> bool:
    has_ends = config.diffusion["beta_schedule"] not in ("squaredcos_cap_v2", "laplace", "jsd")
    return has_ends and config.diffusion["trained_betas"] is None


def idle_settings(config: Config) -> dict[str, str]:
    """Those that are not as by default and do nothing, by name: a sentence on each."""
    values, defaults = (
        flat(vars(config) | {group: vars(getattr(config, group)) for group in _GROUPS}),
        defaults_by_name(),
    )
    return {
        name: f"{name} is {values[name]} and does nothing without {needs}"
        for name, needs in without_effect(config).items()
        if values[name] != defaults[name]
    }


def idle_on(device: str, config: Config) -> list[str]:
    """A sentence on each setting that does nothing on a type of device, ``cpu`` or another."""
    only_there = {
        "tf32": "chooses a type of products of NVIDIA GPUs",
        "deterministic": "chooses among algorithms of CUDA",
    }
    return [
        f"training.{name} is true and does nothing on {device}: it {what}"
        for name, what in only_there.items()
        if getattr(config.training, name) and device != "cuda"
    ]


def without_effect(config: Config) -> dict[str, str]:
    """Settings that do nothing, whatever their value: what each would act with.

    Of settings that come from the base model one does not know it before that is read.
    """
    known = [rule for rule in RULES if not (config.is_open and rule.names[0].startswith(("model.", "diffusion.")))]
    return {name: rule.needs for rule in known if not rule.acts(config) for name in rule.names}


_GROUPS = ("data", "training", "evaluation")


def defaults_by_name() -> dict[str, Any]:
    """The defaults of all settings, by their names on the command line."""
    found: dict[str, Any] = {}
    for field in fields(Config):
        inner: Any = field.type if field.name in _GROUPS else settings_group(field)
        for one in [field] if inner is None else fields(inner):
            name = one.name if inner is None else f"{field.name}.{one.name}"
            found[name] = one.default if one.default_factory is MISSING else one.default_factory()
    return found
