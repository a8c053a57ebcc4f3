"""Settings of the mathematics that cannot work, each refused in one sentence before torch is loaded."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Final

from ddpm_hf.diffusion.choices import (
    LOSS_WEIGHTINGS,
    LOSSES,
    NOISE_SCHEDULES,
    PREDICTION_TYPES,
    TIMESTEP_SPACINGS,
    VARIANCE_TYPES,
)

MOST_TIMESTEPS: Final = 1_000_000
"""Tables of every timestep are kept, in some samplers as a list."""

LARGEST_SAMPLE: Final = 1_000_000
"""Images lie in [-1, 1], and latents not far beyond."""


def check_process(config: Mapping[str, Any]) -> None:
    """See that a DDPMScheduler's config describes a process on which a network can be trained.

    Each sentence begins with the key.

    Raises:
        ValueError: a name is unknown, a number is out of its range, or keys do not go together.
    """
    names: dict[str, Collection[str]] = {
        "beta_schedule": NOISE_SCHEDULES,
        "prediction_type": PREDICTION_TYPES,
        "variance_type": VARIANCE_TYPES,
        "timestep_spacing": TIMESTEP_SPACINGS,
    }
    for key, known in names.items():
        _check(config[key] in known, key, config[key], f"one of {', '.join(known)}")
    check_numbers(config)
    betas = config["trained_betas"]
    if betas is None:
        start, end = config["beta_start"], config["beta_end"]
        _check(0 < start < 1, "beta_start", start, "above 0 and below 1")
        _check(start <= end < 1, "beta_end", end, f"at least beta_start={start} and below 1")
    else:
        steps = config["num_train_timesteps"]
        _check(len(betas) == steps, "trained_betas", f"{len(betas)} numbers", f"num_train_timesteps={steps} numbers")
        _check(all(0 < beta <= 1 for beta in betas), "trained_betas", "numbers", "above 0 and at most 1, each of them")
    is_noise_in_the_end = config["rescale_betas_zero_snr"] or (
        config["beta_schedule"] == "jsd" if betas is None else betas[-1] == 1
    )
    if config["prediction_type"] == "epsilon" and is_noise_in_the_end:
        raise ValueError(
            "prediction_type='epsilon' says nothing about the image at the last timestep, where this noise schedule "
            "leaves nothing of it; use v_prediction or sample."
        )


def check_numbers(config: Mapping[str, Any]) -> None:
    """See that the numbers of a scheduler's config make sense; `GaussianDiffusion` checks what the betas come to.

    Raises:
        ValueError: one is out of its range.
    """
    steps, betas = config["num_train_timesteps"], config["trained_betas"]
    _check(1 <= steps <= MOST_TIMESTEPS, "num_train_timesteps", steps, f"1 or more, and at most {MOST_TIMESTEPS:,}")
    if betas is not None:
        _check(len(betas) > 0, "trained_betas", betas, "num_train_timesteps numbers, or None")
    for key in ("beta_start", "beta_end"):
        _check(abs(config[key]) < math.inf, key, config[key], "a finite number")
    limit = config["clip_sample_range"]
    _check(0 < limit <= LARGEST_SAMPLE, "clip_sample_range", limit, f"above 0, and at most {LARGEST_SAMPLE:,}")
    ratio, largest = config["dynamic_thresholding_ratio"], config["sample_max_value"]
    _check(0 < ratio <= 1, "dynamic_thresholding_ratio", ratio, "above 0 and at most 1")
    _check(1 <= largest <= LARGEST_SAMPLE, "sample_max_value", largest, f"1 or more, and at most {LARGEST_SAMPLE:,}")
    offset = config["steps_offset"]
    _check(0 <= offset < steps, "steps_offset", offset, f"at least 0 and below num_train_timesteps={steps}")


def check_objective(loss: str, variance_type: str, weighting: str = "none") -> None:
    """Check that a loss trains all that the network outputs, and that no setting is without effect.

    Raises:
        ValueError: for an unknown loss, variance type or weighting, or one that does not go with the others.
    """
    settings = (
        ("loss", loss, LOSSES),
        ("variance_type", variance_type, VARIANCE_TYPES),
        ("weighting", weighting, LOSS_WEIGHTINGS),
    )
    for name, value, known in settings:
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}.")
    is_learned = variance_type.startswith("learned")
    if loss == "simple" and is_learned:
        raise ValueError(
            f"variance_type={variance_type!r} learns nothing from loss='simple', which has no gradient for the "
            "variance; use loss='hybrid' or 'kl', or variance_type='fixed_small'."
        )
    if loss == "hybrid" and not is_learned:
        raise ValueError(
            f"loss='hybrid' adds nothing to 'simple' with variance_type={variance_type!r}, as its bound teaches the "
            "variance alone; use variance_type='learned_range', or loss='simple'."
        )
    if loss == "kl" and weighting != "none":
        raise ValueError(
            f"weighting={weighting!r} does not go with loss='kl', which weighs each step itself; use 'none'."
        )


def check_weighting(weighting: str, prediction_type: str) -> None:
    """See that a weighting of the squared error is defined for what the network predicts.

    Raises:
        ValueError: it is not.
    """
    if weighting != "none" and prediction_type not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            f"weighting={weighting!r} is defined for epsilon, sample and v_prediction, not {prediction_type!r}; "
            "use weighting='none'."
        )


def _check(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key}={value!r} must be {expected}.")
