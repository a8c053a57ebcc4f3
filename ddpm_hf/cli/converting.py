"""What ddpm-hf-convert does, once its settings are known to be right."""

import diffusers

from ddpm_hf.cli.convert import ConvertConfig
from ddpm_hf.command_line import fail
from ddpm_hf.conversion.checkpoints import (
    Checkpoint,
    origin_of,
    read_checkpoint,
    read_folder,
    refuse_existing,
    write_checkpoint,
    write_classifier,
    write_folder,
)
from ddpm_hf.conversion.classifiers import classifier_of, is_classifier
from ddpm_hf.conversion.layout_tables import GUIDED_DIFFUSION, LAYOUTS
from ddpm_hf.conversion.layouts import Weights
from ddpm_hf.conversion.pickles import read_trained_weights
from ddpm_hf.conversion.recipes import to_training_recipe


def run(config: ConvertConfig) -> None:
    """Convert, and print what was done; problems end the program."""
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # what it would say of missing weights is in the refusal
    try:
        print(convert(config))
    except (ValueError, OSError) as error:
        fail(str(error))


def convert(config: ConvertConfig) -> str:
    """Convert, and say what was done.

    Raises:
        ValueError: the source is not one of the kinds, or not wholly, or has no counterpart.
        OSError: the source cannot be read, or the destination exists or cannot be written.
    """
    refuse_existing(config.destination)
    if config.is_recipe:
        text = to_training_recipe(config.source)
        config.destination.parent.mkdir(parents=True, exist_ok=True)
        config.destination.write_text(text)
        return f"{config.destination}: a recipe for train_accelerate.py"
    if config.source.is_dir():
        checkpoint = read_folder(config.source)
    else:
        trained = read_trained_weights(config.source)
        if is_classifier(trained.raw):
            return _convert_classifier(config, trained.raw)
        checkpoint = read_checkpoint(config.source, trained, config.recipe, config.sample_size, config.norm_eps)
    if config.to == "diffusers":
        write_folder(checkpoint, config.destination)
    else:
        write_checkpoint(checkpoint, LAYOUTS[config.to], config.destination)
    return _report(config, checkpoint)


def _convert_classifier(config: ConvertConfig, weights: Weights) -> str:
    if config.to != "diffusers":
        raise ValueError(f"{config.source} is a classifier, for which there is no {config.to}; leave --to out")
    classifier = classifier_of(weights, config.source, config.recipe)
    origin = origin_of(GUIDED_DIFFUSION.name, config.source, config.recipe)
    write_classifier(classifier, origin, config.destination)
    parameters = sum(weight.numel() for weight in classifier.state_dict().values())
    return f"{config.destination}: a NoisyClassifier of {parameters:,} parameters, from {GUIDED_DIFFUSION.name}"


def _report(config: ConvertConfig, checkpoint: Checkpoint) -> str:
    state = checkpoint.unet.state_dict()
    weights = [weight for key, weight in state.items() if config.to == "diffusers" or key != "time_proj.weight"]
    parameters = sum(weight.numel() for weight in weights)
    averages = " (averaged weights, and those behind them)" if checkpoint.raw is not None else ""
    lines = [
        f"{config.destination}: {parameters:,} parameters in {len(weights)} tensors, from "
        f"{checkpoint.source['layout']} to {config.to}{averages}",
        *(f"not said by {config.source}, so assumed: {what}" for what in checkpoint.assumed),
    ]
    return "\n".join(lines)
