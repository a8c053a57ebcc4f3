"""The flags of OpenAI's improved-diffusion and guided-diffusion (ADM): a network and a process, read and written.

Their weights say neither how many heads an attention has, nor in which order its projections stand, so that a
checkpoint needs the flags with which it is sampled from. Those of the published ones stand here.
"""

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any, Final

from ddpm_hf.conversion.layout_tables import GUIDED_DIFFUSION, GUIDED_DIFFUSION_NEW_ORDER, LIKE_OPENAI
from ddpm_hf.conversion.layouts import samples_by_residual_blocks
from ddpm_hf.conversion.recipe_terms import ForeignRecipe, check_schedule, levels_of
from ddpm_hf.models.unet_2d_config import heads_per_level, levels_with_attention

Flags = Mapping[str, str]

CLASSES: Final = 1000
MULTIPLIERS: Final[Mapping[int, tuple[float, ...]]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Widths of the levels in multiples of --num_channels, by the images' side."""

_LARGE: Final = {
    "num_channels": "256",
    "num_res_blocks": "2",
    "num_head_channels": "64",
    "attention_resolutions": "32,16,8",
    "learn_sigma": "True",
    "resblock_updown": "True",
}
_CLASSES: Final = {"class_cond": "True"}
_LSUN: Final = {**_LARGE, "image_size": "256", "dropout": "0.1"}
_IMPROVED: Final = {
    "num_channels": "128",
    "num_res_blocks": "3",
    "learn_sigma": "True",
    "diffusion_steps": "4000",
    "noise_schedule": "cosine",
    "rescale_timesteps": "True",  # the project's default
}
_IMPROVED_LSUN: Final = {
    "image_size": "256",
    "num_channels": "128",
    "num_res_blocks": "2",
    "num_heads": "1",
    "attention_resolutions": "16",
    "learn_sigma": "True",
    "use_scale_shift_norm": "False",
}
PUBLISHED: Final[Mapping[str, Flags]] = {
    "64x64_diffusion": {
        **(_LARGE | _CLASSES),
        "image_size": "64",
        "num_channels": "192",
        "num_res_blocks": "3",
        "dropout": "0.1",
        "noise_schedule": "cosine",
        "use_new_attention_order": "True",
    },
    "128x128_diffusion": {**(_LARGE | _CLASSES), "image_size": "128", "num_heads": "4", "num_head_channels": "-1"},
    "256x256_diffusion": {**(_LARGE | _CLASSES), "image_size": "256"},
    "256x256_diffusion_uncond": {**_LARGE, "image_size": "256"},
    "512x512_diffusion": {**(_LARGE | _CLASSES), "image_size": "512"},
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
    "lsun_horse_nodropout": {**_LSUN, "dropout": "0.0"},
    "cifar10_uncond_50M_500K": {**_IMPROVED, "image_size": "32", "dropout": "0.3"},
    "cifar10_uncond_vlb_50M_500K": {**_IMPROVED, "image_size": "32", "dropout": "0.3"},
    "imagenet64_uncond_100M_1500K": {**_IMPROVED, "image_size": "64"},
    "imagenet64_uncond_vlb_100M_1500K": {**_IMPROVED, "image_size": "64"},
    "imagenet64_cond_270M_250K": {
        **(_IMPROVED | _CLASSES),
        "image_size": "64",
        "num_channels": "192",
        "rescale_timesteps": "False",
    },
    "lsun_uncond_100M_1200K_bs128": _IMPROVED_LSUN,
    "lsun_uncond_100M_2400K_bs64": _IMPROVED_LSUN,
}
"""Flags of the checkpoints that the two projects publish, by the name of the file; those that the network needs."""

_CLASSIFIER_DEFAULTS: Final = {
    "classifier_width": "128",
    "classifier_depth": "2",
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": "True",
    "classifier_resblock_updown": "True",
    "classifier_pool": "attention",
}
PUBLISHED_CLASSIFIERS: Final[Mapping[str, Flags]] = {
    "64x64_classifier": {"image_size": "64", "classifier_depth": "4"},
    **{f"{size}x{size}_classifier": {"image_size": str(size)} for size in (128, 256, 512)},
}
"""The same for noisy classifiers."""

_DEFAULTS: Final = {
    "image_size": "64",
    "num_channels": "128",
    "num_res_blocks": "2",
    "num_heads": "4",
    "num_heads_upsample": "-1",
    "num_head_channels": "-1",
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": "0.0",
    "class_cond": "False",
    "use_scale_shift_norm": "True",
    "resblock_updown": "False",
    "use_new_attention_order": "False",
    "learn_sigma": "False",
    "sigma_small": "False",
    "diffusion_steps": "1000",
    "noise_schedule": "linear",
    "predict_xstart": "False",
    "rescale_timesteps": "",  # improved-diffusion's is True, guided-diffusion's False
}
_OF_OTHER_THINGS: Final = frozenset(
    (
        *("batch_size", "clip_denoised", "data_dir", "ema_rate", "fp16_scale_growth", "log_interval", "lr"),
        *("lr_anneal_steps", "microbatch", "model_path", "num_samples", "rescale_learned_sigmas", "resume_checkpoint"),
        *("save_interval", "schedule_sampler", "timestep_respacing", "use_checkpoint", "use_ddim", "use_fp16"),
        *("use_kl", "weight_decay", "classifier_path", "classifier_scale", "classifier_use_fp16", "iterations"),
        *("anneal_lr", *_CLASSIFIER_DEFAULTS),
    )
)
"""Flags that change neither the network nor the process that it was trained on."""

_NOISE_SCHEDULES: Final = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def parse_flags(text: str) -> dict[str, str]:
    """`--name value ...`, also in the quotes of shell variables, as their READMEs have it.

    Raises:
        ValueError: it is something else, or has a flag that is not known here; to be read after "the recipe X".
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ValueError(f"is no line of flags ({error})") from None
    flat: list[str] = []
    for word in words:
        variable = re.fullmatch(r"\w+=(\s*--.*)", word, re.DOTALL)
        flat += shlex.split(variable[1]) if variable else [word]
    found: dict[str, str] = {}
    while flat:
        name = flat.pop(0)
        if not name.startswith("--"):
            raise ValueError(f"has {name!r} where a flag is expected; give flags and their values alone")
        name, has_value, value = name.removeprefix("--").partition("=")
        if not has_value:
            if not flat or flat[0].startswith("--"):
                raise ValueError(f"gives --{name} no value")
            value = flat.pop(0)
        found[name] = value
    for name in ("large_size", "small_size"):
        if name in found:
            raise ValueError(f"has --{name}, so it is of an upsampler, for which there is no pipeline here")
    unknown = [name for name in found if name not in _DEFAULTS and name not in _OF_OTHER_THINGS]
    if unknown:
        raise ValueError(f"has --{unknown[0]}, which is no flag of a network or process that is known here")
    if not found:
        raise ValueError("is empty; give flags such as --image_size 64 --num_channels 128")
    return found


def read_flags(given: Flags) -> ForeignRecipe:
    """What flags say, in our terms.

    Raises:
        ValueError: it has no counterpart here; to be read after "the recipe X".
    """
    flags = {**_DEFAULTS, **given}

    size, width, steps = (_number(flags, name, 1) for name in ("image_size", "num_channels", "diffusion_steps"))
    channels = _widths(flags, size, width)
    attended = _numbers(flags, "attention_resolutions")
    has_attention = [any(side > 0 and size // side == 2**i for side in attended) for i in range(len(channels))]
    levels = levels_of(channels, has_attention)
    is_residual = _truth(flags, "resblock_updown")
    if is_residual:
        for way in ("Down", "Up"):
            residual = {f"{way}Block2D": f"Resnet{way}sampleBlock2D"}
            key = f"{way.lower()}_block_types"
            levels[key] = [residual.get(kind, kind) for kind in levels[key]]
    model = {
        **LIKE_OPENAI,
        **levels,
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 6 if _truth(flags, "learn_sigma") else 3,
        "layers_per_block": _number(flags, "num_res_blocks", 1),
        "downsample_type": "resnet" if is_residual else "conv",
        "upsample_type": "resnet" if is_residual else "conv",
        "attention_head_dim": _heads(flags, channels, [*has_attention[:-1], True]),
        "resnet_time_scale_shift": "scale_shift" if _truth(flags, "use_scale_shift_norm") else "default",
        "num_class_embeds": CLASSES if _truth(flags, "class_cond") else None,
        "time_embedding_dim": None if channels[0] == width else 4 * width,
        "time_proj_dim": None if channels[0] == width else width,
        "dropout": _share(flags, "dropout"),
    }
    if steps != 1000:
        if not flags["rescale_timesteps"]:
            raise ValueError(
                f"has --diffusion_steps {steps} and no --rescale_timesteps; give it, as the default of "
                "improved-diffusion is True and that of guided-diffusion False"
            )
        if _truth(flags, "rescale_timesteps"):
            model |= {"time_embedding_type": "learned", "num_train_timesteps": steps}
    is_new = _truth(flags, "use_new_attention_order")
    layout = GUIDED_DIFFUSION_NEW_ORDER if is_new else GUIDED_DIFFUSION
    return ForeignRecipe(model, _process(flags, steps), layout=layout)


def classifier_settings(given: Flags) -> dict[str, Any]:
    """The UNet2DModel settings of the way down that is a classifier's.

    Raises:
        ValueError: it has no counterpart here; to be read after "the recipe X".
    """
    flags = {**_CLASSIFIER_DEFAULTS, **given}
    if flags["classifier_pool"] != "attention":
        raise ValueError(f"has --classifier_pool {flags['classifier_pool']}, and attention is known")
    names = {
        "num_channels": "classifier_width",
        "num_res_blocks": "classifier_depth",
        "attention_resolutions": "classifier_attention_resolutions",
        "use_scale_shift_norm": "classifier_use_scale_shift_norm",
        "resblock_updown": "classifier_resblock_updown",
    }
    size = {"image_size": given["image_size"]} if "image_size" in given else {}
    of_unet = {name: flags[classifiers] for name, classifiers in names.items()}
    return read_flags({**of_unet, **size, "num_head_channels": "64"}).model


def _number(flags: Flags, name: str, least: int) -> int:
    if not re.fullmatch(r"-?\d{1,9}", flags[name]) or int(flags[name]) < least:
        raise ValueError(f"has --{name} {flags[name]}, and a whole number from {least} on is expected")
    return int(flags[name])


def _share(flags: Flags, name: str) -> float:
    if not re.fullmatch(r"0?\.\d+|0", flags[name]):
        raise ValueError(f"has --{name} {flags[name]}, and a number from 0 up to, but not including, 1 is expected")
    return float(flags[name])


def _truth(flags: Flags, name: str) -> bool:
    word = flags[name].lower()
    if word not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise ValueError(f"has --{name} {flags[name]}, and True or False is expected")
    return word in ("yes", "true", "t", "y", "1")


def _process(flags: Flags, steps: int) -> dict[str, Any]:
    if flags["noise_schedule"] not in _NOISE_SCHEDULES:
        raise ValueError(f"has --noise_schedule {flags['noise_schedule']}, and linear and cosine are known")
    fixed = "fixed_small" if _truth(flags, "sigma_small") else "fixed_large"
    process: dict[str, Any] = {
        "num_train_timesteps": steps,
        "beta_schedule": _NOISE_SCHEDULES[flags["noise_schedule"]],
        "variance_type": "learned_range" if _truth(flags, "learn_sigma") else fixed,
        "prediction_type": "sample" if _truth(flags, "predict_xstart") else "epsilon",
    }
    if flags["noise_schedule"] == "linear":
        process |= dict(zip(("beta_start", "beta_end"), _betas(steps), strict=True))
    return process


def _betas(steps: int) -> tuple[float, float]:
    """Both ends of the linear schedule, which keeps Ho et al.'s last noise for other numbers of steps than 1000."""
    return 1000 / steps * 0.0001, 1000 / steps * 0.02


def _numbers(flags: Flags, name: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", flags[name]):
        raise ValueError(f"has --{name} {flags[name]}, and whole numbers with commas between are expected")
    return [int(number) for number in flags[name].split(",")]


def _widths(flags: Flags, size: int, width: int) -> list[int]:
    if flags["channel_mult"]:
        return [width * multiplier for multiplier in _numbers(flags, "channel_mult")]
    if size not in MULTIPLIERS:
        raise ValueError(
            f"has --image_size {size} without --channel_mult; {', '.join(map(str, MULTIPLIERS))} need none"
        )
    return [int(width * multiplier) for multiplier in MULTIPLIERS[size]]


def _heads(flags: Flags, channels: list[int], has_attention: list[bool]) -> int | list[int] | None:
    """attention_head_dim: one number where all levels with attention have it, else one per level."""
    widths = [width for width, attends in zip(channels, has_attention, strict=True) if attends]
    by_width, number = _number(flags, "num_head_channels", -1), _number(flags, "num_heads", 1)
    if by_width == -1 and flags["num_heads_upsample"] not in ("-1", flags["num_heads"]):
        raise ValueError(
            f"has --num_heads_upsample {flags['num_heads_upsample']} beside --num_heads {number}, and no UNet2DModel "
            "has other heads on the way up than on the way down"
        )
    name, divisor = ("num_heads", number) if by_width == -1 else ("num_head_channels", by_width)
    if divisor < 1 or any(width % divisor for width in widths):
        raise ValueError(f"has --{name} {divisor}, which does not divide the widths {widths} of its attentions")
    if by_width != -1:
        return by_width
    if number == 1:
        return None
    head_widths = {width // number for width in widths}
    return head_widths.pop() if len(head_widths) == 1 else [width // number for width in channels]


def guided_diffusion_flags(unet: Any, scheduler: Any) -> str:
    """The flags with which the projects build this network and process, one a line, but for the order of attention.

    Args:
        unet: Config of a UNet2DModel that `layouts.check_expressible` has let pass.
        scheduler: Config of a scheduler.

    Raises:
        ValueError: they have no such network or process; to be read after "no such model, which".
    """
    size, channels = unet.sample_size, list(unet.block_out_channels)
    if not isinstance(size, int):
        raise ValueError(f"has sample_size={size}, and the other side knows squares by their side")
    width, levels = unet.get("time_proj_dim") or channels[0], len(channels)
    flags: dict[str, Any] = {"image_size": size, "num_channels": width, "num_res_blocks": unet.layers_per_block}
    if channels != [int(width * multiplier) for multiplier in MULTIPLIERS.get(size, ())]:
        if any(number % width for number in channels):
            raise ValueError(f"has block_out_channels={channels}, and the other side knows multiples of {width}")
        flags["channel_mult"] = ",".join(str(number // width) for number in channels)
    sides = [size >> i for i, kind in enumerate(unet.down_block_types) if kind.startswith("Attn")]
    flags["attention_resolutions"] = ",".join(map(str, sides or [2 * size]))  # that side is no level's
    flags |= _head_flags(unet)
    kinds = {samples_by_residual_blocks(unet, i, "down") for i in range(levels - 1)}
    kinds |= {samples_by_residual_blocks(unet, i, "up") for i in range(1, levels)}
    if len(kinds) > 1:
        raise ValueError("changes the resolution by convolutions and by residual blocks")
    if True in kinds:  # a flag that improved-diffusion lacks
        flags["resblock_updown"] = True
    flags["use_scale_shift_norm"] = unet.resnet_time_scale_shift == "scale_shift"
    if unet.resnet_time_scale_shift == "scale_shift" and unet.attn_norm_num_groups != 32:
        raise ValueError("has no norm of 32 groups in the middle attention (attn_norm_num_groups)")
    if unet.resnet_time_scale_shift != "scale_shift" and unet.attn_norm_num_groups not in (None, 32):
        raise ValueError(f"has attn_norm_num_groups={unet.attn_norm_num_groups}, and the other side has 32")
    flags |= {"class_cond": unet.num_class_embeds is not None, "dropout": unet.dropout}
    return "".join(f"--{name} {value}\n" for name, value in (flags | _process_flags(unet, scheduler)).items())


def _head_flags(unet: Any) -> dict[str, int]:
    levels = zip(unet.block_out_channels, heads_per_level(unet), levels_with_attention(unet), strict=True)
    attended = [(width, head or width) for width, head, attends in levels if attends]
    if any(width % head for width, head in attended):
        raise ValueError(f"has attention_head_dim={unet.attention_head_dim}, which does not divide its channels")
    numbers, head_widths = {width // head for width, head in attended}, {head for _, head in attended}
    if len(numbers) == 1:
        return {"num_heads": numbers.pop()}
    if len(head_widths) == 1:
        return {"num_head_channels": head_widths.pop()}
    raise ValueError(f"has heads of different numbers and widths (attention_head_dim={unet.attention_head_dim})")


def _process_flags(unet: Any, scheduler: Any) -> dict[str, Any]:
    check_schedule(scheduler)
    steps, name = scheduler.num_train_timesteps, scheduler.beta_schedule
    schedules = {ours: theirs for theirs, ours in _NOISE_SCHEDULES.items()}
    if name not in schedules:
        raise ValueError(f"has beta_schedule={name!r}, and the other side knows {', '.join(schedules)}")
    ends = (scheduler.beta_start, scheduler.beta_end)
    if name == "linear" and not all(math.isclose(a, b) for a, b in zip(ends, _betas(steps), strict=True)):
        raise ValueError(
            f"has betas from {ends[0]} to {ends[1]}, and the other side {' to '.join(map(str, _betas(steps)))}"
        )
    variance = str(scheduler.get("variance_type", "fixed_small")).removesuffix("_log")
    if variance not in ("learned_range", "fixed_small", "fixed_large"):
        raise ValueError(f"has variance_type={variance!r}, and the other side knows learned_range and fixed ones")
    if unet.out_channels != (6 if variance == "learned_range" else 3):
        raise ValueError(f"has {unet.out_channels} output channels for variance_type {variance!r}")
    if scheduler.prediction_type not in ("epsilon", "sample"):
        raise ValueError(f"has prediction_type={scheduler.prediction_type!r}, and the other side epsilon and sample")
    is_rescaled = unet.time_embedding_type == "learned"
    if is_rescaled and unet.num_train_timesteps != steps:
        raise ValueError(f"has a table of {unet.num_train_timesteps} timesteps for a process of {steps}")
    return {
        "learn_sigma": variance == "learned_range",
        **({"sigma_small": True} if variance == "fixed_small" else {}),
        "diffusion_steps": steps,
        "noise_schedule": schedules[name],
        **({"predict_xstart": True} if scheduler.prediction_type == "sample" else {}),
        "rescale_timesteps": is_rescaled,
    }
