"""Training from Python, in a notebook or a script: settings with defaults, then the run, by two calls.

    >>> from ddpm_hf import train, training_config
    >>> config = training_config("digits", training={"steps": 100}, output_dir="runs/notebook")
    >>> trained = train(config)
                         samples    held out       ratio
    ...
    >>> fid = trained.scores["fid"]["samples"]
    >>> images = trained.pipeline()(seeds=range(4)).images

Several processes are started by accelerate, before anything in the notebook has used a GPU:

    >>> from accelerate import notebook_launcher
    >>> notebook_launcher(train, (config,), num_processes=2)  # doctest: +SKIP

The loop is that of train_accelerate.py, and so is the run folder: a stopped run goes on when it is called again, and
the commands read what a notebook has trained.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_hf.recipes import default_recipes, training_script

if TYPE_CHECKING:  # what a notebook's first line must not load
    from ddpm_hf.pipeline import DDPMCustomPipeline
    from ddpm_hf.training.settings import Config


@dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Args:
        folder: The run's folder; after a dry run there is none.
        scores: Score -> set of images (samples, held_out) -> value, as metrics.json has it; empty after a dry run, and
            without `evaluation.extractor`.
    """

    folder: Path
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def pipeline(self) -> "DDPMCustomPipeline":
        """The model, loaded from the folder."""
        from ddpm_hf.pipeline import DDPMCustomPipeline

        pipeline: DDPMCustomPipeline = DDPMCustomPipeline.from_pretrained(self.folder)
        return pipeline


def training_config(recipe: str | Path | None = None, /, **settings: Any) -> "Config":
    """The settings of a run: those given, over a recipe, over the defaults, as on the command line.

    Args:
        recipe: The name of a recipe that comes with this package, or the path of a YAML file. None: digits, or
            fine_tune where init_from is given, or photos where data.name is.
        settings: What `train_accelerate.py --help` lists. Groups are dicts, as in ``training={"steps": 100}``, or their
            names have dots, as in ``**{"training.steps": 100}``.

    Raises:
        ValueError: a setting is unknown or wrong, in one sentence.
    """
    from ddpm_hf.command_line import config_of

    words = [f"--{name}={_as_word(value)}" for name, value in _flat(settings)]
    return config_of(words if recipe is None else [f"--config={recipe}", *words], *default_recipes())


def train(config: "Config") -> Trained:
    """Train, draw, score and save a model: all that `train_accelerate.py` does with these settings.

    Args:
        config: From `training_config`.

    Raises:
        ValueError: the settings do not go with the images, the machine or the run folder, in one sentence.
        ddpm_hf.training.run.Stopped: the notebook's stop button; the step was saved, and the same call goes on.
        FloatingPointError: the gradient is not finite any more.
        ddpm_hf.training.checkpoints.SaveError: a checkpoint could not be written.
    """
    results, not_pushed = training_script().complete(config)
    if not_pushed:
        print(f"Note: {not_pushed}", file=sys.stderr)
    return Trained(config.output_dir, results.scores if results is not None else {})


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each setting by its full name; the dict of a group gives several."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and "." not in name:
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        else:
            yield name, value


def _as_word(value: Any) -> str:
    """A value as it is typed on the command line; one of numpy or torch as Python's own."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=lambda one: one.tolist() if hasattr(one, "tolist") else str(one))
