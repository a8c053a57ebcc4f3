"""Experiment trackers: all that accelerate knows, how each is started for a run, and how each takes a picture."""

import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL.Image import Image

from ddpm_hf.launch import decided_by_main
from ddpm_hf.settings import flat
from ddpm_hf.training.choices import TRACKERS
from ddpm_hf.training.settings import Config

PROJECT = "ddpm_hf"


def start_trackers(accelerator: Accelerator, config: Config, is_resumed: bool) -> None:
    """Start the trackers of the settings, on the main process, and tell them the settings.

    Args:
        accelerator: From then on it has them, on the main process alone.
        config: The run's settings.
        is_resumed: Go on with what they hold of the run, where they can.

    Raises:
        ValueError: one does not start, on all processes.
    """
    names = config.training.trackers
    if not names:
        return
    settings = flat(config.to_dict())
    simple = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}

    def start() -> None:
        try:
            accelerator.init_trackers(PROJECT, simple, options_of(config.output_dir, is_resumed))
        except Exception as error:  # whatever it is that they raise, such as for want of a key or of the network
            reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
            what = f"cannot write into {config.output_dir}" if isinstance(error, OSError) else "cannot start"
            raise ValueError(
                f"training.trackers {', '.join(names)} {what}: {reason}; mend that, or take them out"
            ) from None

    decided_by_main(accelerator, start)


def options_of(folder: Path, is_resumed: bool) -> dict[str, dict[str, Any]]:
    """How each tracker is to be made: the run has the name of its folder, and what lies on this disk lies in it."""
    name = folder.resolve().name
    return {
        "clearml": {"task_name": os.environ.get("CLEARML_TASK", name)},
        "dvclive": {"dir": str(folder / "dvclive"), "resume": is_resumed},
        "mlflow": {"run_name": os.environ.get("MLFLOW_RUN_NAME", name)},
        "swanlab": {"experiment_name": name, "logdir": str(folder / "swanlog")},
        "trackio": {"name": name, "resume": "allow" if is_resumed else "never"},
        "wandb": {"name": os.environ.get("WANDB_NAME", name), "dir": str(folder)},
    }


def send_picture(accelerator: Accelerator, name: str, picture: Image, step: int) -> None:
    """Give a picture of a step to each tracker that has been started."""
    for tracker in accelerator.trackers:
        resolve_name(TRACKERS[tracker.name])(tracker, name, picture.convert("RGB"), step)


# Each of them takes accelerate's tracker, the picture's name, the picture and its step.


def aim(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.log_images({name: picture}, step=step)


def clearml(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.log_images({name: picture}, step=step)


def comet_ml(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.tracker.log_image(picture, name=name, step=step)


def dvclive(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.tracker.log_image(f"{name}/{step}.png", picture)  # the name that its viewers show with a slider


def mlflow(tracker: Any, name: str, picture: Image, step: int) -> None:
    resolve_name("mlflow:log_image")(picture, key=name, step=step)


def swanlab(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.log_images({name: [picture]}, step=step)


def tensorboard(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")


def trackio(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.log({name: resolve_name("trackio:Image")(picture)}, step=step)


def wandb(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.log_images({name: [picture]}, step=step)
