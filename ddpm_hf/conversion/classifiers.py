"""guided-diffusion's noisy classifiers: its layout without the way up, and with a pooling at the end."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddpm_hf.conversion.layout_tables import GUIDED_DIFFUSION
from ddpm_hf.conversion.layouts import (
    Name,
    Weights,
    check_whole,
    names_of,
    under_our_names,
    under_their_names,
    unet_without_memory,
)
from ddpm_hf.conversion.openai_flags import PUBLISHED_CLASSIFIERS, classifier_settings, parse_flags
from ddpm_hf.models.noisy_classifier import NoisyClassifier

_KEPT: Final = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.", "conv_norm_out.")
_POOL: Final = (
    Name("pool.positional_embedding", "out.2.positional_embedding", 0),
    *(Name(f"pool.qkv.{kind}", f"out.2.qkv_proj.{kind}", 1) for kind in ("weight", "bias")),
    *(Name(f"pool.out.{kind}", f"out.2.c_proj.{kind}", 1) for kind in ("weight", "bias")),
)


def is_classifier(weights: Mapping[str, Tensor]) -> bool:
    """Whether they are of guided-diffusion's layout, and have no way up."""
    return GUIDED_DIFFUSION.signature in weights and not any(key.startswith("output_blocks.") for key in weights)


def classifier_of(weights: Weights, path: Path, recipe: Path | None) -> NoisyClassifier:
    """The classifier of a checkpoint.

    Args:
        weights: Those of the file.
        path: Its path.
        recipe: A .txt with its flags, or the name of a published one.

    Raises:
        ValueError: it is not whole, or not that of the recipe, in one sentence.
        OSError: the recipe cannot be read.
    """
    try:
        model = _settings(recipe, path)
        classifier, names = classifier_without_memory(model), list(_names(model))
        expected = under_their_names(GUIDED_DIFFUSION, names, classifier.state_dict())
        check_whole(weights, expected, "guided-diffusion classifier", " that the recipe describes")
    except ValueError as error:
        raise ValueError(f"{path} cannot be converted: {error}") from None
    classifier.load_state_dict(under_our_names(GUIDED_DIFFUSION, names, weights), assign=True)
    classifier.eval()
    return classifier


def classifier_without_memory(model: Mapping[str, Any]) -> NoisyClassifier:
    """The classifier that goes down as the network of these UNet2DModel settings does."""
    taken = (
        *("sample_size", "in_channels", "down_block_types", "block_out_channels", "layers_per_block"),
        *("downsample_type", "attention_head_dim", "norm_eps", "norm_num_groups", "resnet_time_scale_shift"),
    )
    waves = model["time_proj_dim"] or model["block_out_channels"][0]
    with torch.device("meta"):
        classifier: NoisyClassifier = NoisyClassifier(**{key: model[key] for key in taken}, time_proj_dim=waves)
    return classifier


def _settings(recipe: Path | None, path: Path) -> dict[str, Any]:
    if recipe is None:
        name = path.stem if path.stem in PUBLISHED_CLASSIFIERS else "flags.txt"
        raise ValueError(
            f"a classifier's weights do not tell its heads; give its flags or published name, such as --recipe {name}"
        )
    if str(recipe) in PUBLISHED_CLASSIFIERS and not recipe.exists():
        return classifier_settings(PUBLISHED_CLASSIFIERS[str(recipe)])
    if recipe.suffix != ".txt":
        raise ValueError(
            f"{recipe} is no recipe of a classifier; give a .txt of its flags, or one of "
            f"{', '.join(PUBLISHED_CLASSIFIERS)}"
        )
    try:
        return classifier_settings(parse_flags(recipe.read_text()))
    except ValueError as error:
        raise ValueError(f"the recipe {recipe} {error}") from None


def _names(model: Mapping[str, Any]) -> Iterator[Name]:
    network = unet_without_memory(model)
    yield from (name for name in names_of(GUIDED_DIFFUSION, network.config) if name.ours.startswith(_KEPT))
    yield from _POOL
