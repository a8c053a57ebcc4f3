"""OpenAI's flags of a training as settings of one here."""

import re
from typing import Any, Final

from ddpm_hf.conversion.openai_flags import Flags, read_flags

STEPS_WITHOUT_END: Final = 500_000
"""Steps where --lr_anneal_steps does not say them: the two projects train until they are stopped."""

NO_CLIPPING: Final = 1e6
"""A norm that no gradient reaches, as the two projects do not clip."""

_DEFAULTS: Final = {
    "lr": "1e-4",
    "weight_decay": "0.0",
    "ema_rate": "0.9999",
    "lr_anneal_steps": "0",
    "schedule_sampler": "uniform",
    "use_kl": "False",
    "rescale_learned_sigmas": "",  # improved-diffusion's is True, guided-diffusion's False
}
_SAMPLERS: Final = {"uniform": "uniform", "loss-second-moment": "importance"}


def training_settings(given: Flags) -> dict[str, Any]:
    """The groups `model`, `diffusion` and `training` of a recipe.

    Raises:
        ValueError: it has no counterpart here; to be read after "the recipe X".
    """
    flags = {**_DEFAULTS, **given}
    if "batch_size" not in given:
        raise ValueError("has no --batch_size, which says how many images a step has, on all devices together")
    # A table of timesteps would begin at random: a network that is trained anew sees them as they are.
    recipe = read_flags({**given, "rescale_timesteps": "False"})
    if flags["schedule_sampler"] not in _SAMPLERS:
        raise ValueError(f"has --schedule_sampler {flags['schedule_sampler']}, and {', '.join(_SAMPLERS)} are known")
    decays = [_number(flags, "ema_rate", rate) for rate in flags["ema_rate"].split(",")]
    learning_rate, weight_decay = (_number(flags, name, flags[name]) for name in ("lr", "weight_decay"))
    batch_size, annealed = (int(_number(flags, name, flags[name])) for name in ("batch_size", "lr_anneal_steps"))
    return {
        "model": recipe.model,
        "diffusion": recipe.diffusion,
        "training": {
            "steps": annealed or STEPS_WITHOUT_END,
            "batch_size": batch_size,
            "optimizer": "adamw" if weight_decay else "adam",
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "lr_schedule": "linear" if annealed else "constant",
            "warmup_steps": 0,
            "max_grad_norm": NO_CLIPPING,
            "ema_decay": decays if len(decays) > 1 else decays[0],
            **_loss(flags, recipe.diffusion),
            "timestep_sampling": _SAMPLERS[flags["schedule_sampler"]],
        },
    }


def _loss(flags: Flags, process: dict[str, Any]) -> dict[str, Any]:
    if _is_true(flags["use_kl"]):
        return {"loss": "kl"}
    if process["variance_type"] != "learned_range":
        return {"loss": "simple"}
    steps = process["num_train_timesteps"]
    if steps != 1000 and not flags["rescale_learned_sigmas"]:
        raise ValueError(
            f"has --diffusion_steps {steps}, --learn_sigma and no --rescale_learned_sigmas; give it, as the default of "
            "improved-diffusion is True and that of guided-diffusion False"
        )
    # They weigh one term of the bound by T / 1000, or not at all; here the weight is that of all T.
    return {"loss": "hybrid", "vlb_weight": 0.001 if _is_true(flags["rescale_learned_sigmas"]) else 1 / steps}


def _is_true(word: str) -> bool:
    return word.lower() in ("yes", "true", "t", "y", "1")


def _number(flags: Flags, name: str, word: str) -> float:
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", word, re.IGNORECASE):
        raise ValueError(f"has --{name} {flags[name]}, and a number is expected")
    return float(word)
