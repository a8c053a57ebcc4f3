"""The model that a page shows: of a folder, of the Hub, or the newest checkpoint of a run that is still training."""

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from ddpm_hf.images import Display
from ddpm_hf.launch import start_processes
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.pixels import EIGHT_BITS
from ddpm_hf.sampling.denoising import image_shape
from ddpm_hf.sampling.plan import Plan, planned
from ddpm_hf.sampling.request import Request
from ddpm_hf.training.checkpoint_files import newest_complete, step_of
from ddpm_hf.training.downloads import local_folder

TILE = 128
"""Side that small images are enlarged to, in pixels."""


@dataclass(frozen=True)
class Model:
    """A model in memory. It is only read, so that several people may draw from it at once.

    Args:
        name: As it was given.
        pipe: Its network, its scheduler and the format of its images.
        step: Steps trained, of a checkpoint; None of a finished model.
    """

    name: str
    pipe: DDPMCustomPipeline
    step: int | None = None

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of its images."""
        return image_shape(self.pipe.unet)

    @property
    def num_classes(self) -> int | None:
        """How many classes it knows; None for a model without any."""
        number: int | None = self.pipe.unet.config.num_class_embeds
        return number

    @property
    def display(self) -> Display:
        """How its images are shown."""
        return Display(self.pipe.format)

    @property
    def display_of_steps(self) -> Display:
        """How they are shown on their way, which is in 8 bits whatever their own type is."""
        return Display(replace(EIGHT_BITS, alpha=self.pipe.format.alpha))

    @property
    def is_of_pictures(self) -> bool:
        """Whether a picture that a person has can take the place of one of its images."""
        return self.pipe.format == EIGHT_BITS and self.shape[0] in (1, 3)

    @property
    def scale(self) -> int:
        """The whole factor by which its images are enlarged to be seen."""
        return max(1, TILE // max(self.shape[1:]))

    def planned(self, request: Request) -> tuple[DDPMCustomPipeline, Plan]:
        """A pipeline of its own for a request, and what it is to do.

        Raises:
            ValueError: the model cannot draw that, in the sentence of ddpm-hf-sample.
        """
        plan = planned(request, self.pipe.unet, self.pipe.scheduler, self.name)
        return self.pipeline(DDPMCustomPipeline, plan.scheduler), plan

    def pipeline(self, kind: Any, scheduler: Any) -> Any:
        """A pipeline of a class that takes a network and a scheduler, with this network."""
        pipe = kind(self.pipe.unet, scheduler)
        pipe.format = self.pipe.format
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def __str__(self) -> str:
        channels, height, width = self.shape
        kinds = {1: "grey", 3: "colour"}
        kind = kinds.get(channels, f"{channels}-channel") if not self.pipe.format.alpha else "transparent"
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        parameters = sum(parameter.numel() for parameter in self.pipe.unet.parameters())
        of_step = "" if self.step is None else f", step {self.step:,} of a run that is not finished"
        return (
            f"{kind} images of {height} x {width} pixels{classes}; a network of {parameters:,} parameters on "
            f"{self.pipe.device.type}{of_step}"
        )


class Source:
    """Where the model comes from. It is loaded when it is first asked for, and kept.

    Args:
        model: Folder of a pipeline or run, or a Hub id, with ``@REVISION`` where it is not that of main.
        threads: CPU threads; None for all usable cores.

    Attributes:
        accelerator: Where it draws.
        run: The folder of a training run, whose curves can be shown; None for anything else.
    """

    def __init__(self, model: str, threads: int | None = None) -> None:
        self.name = model
        self.accelerator = start_processes(threads)
        self._lock = threading.Lock()
        self._loaded: Model | None = None
        self._seen: list[str] = []
        folder = Path(model)
        self.run = folder if (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file() else None
        self._is_finished = not (self.run and not (folder / "model_index.json").is_file())

    def model(self) -> Model:
        """The model; of a run under way the newest complete checkpoint, so that a later call may return another one.

        Raises:
            ValueError: the run has no checkpoint yet.
            OSError: there is no such model, or it cannot be read, in one sentence.
        """
        with self._lock:
            if not self._is_finished:
                return self._newest()
            if self._loaded is None:
                name, _, revision = (self.name, "", "") if Path(self.name).exists() else self.name.partition("@")
                folder, _ = local_folder(name, revision or None, self.accelerator)
                self._loaded = self._load(folder)
            return self._loaded

    def _newest(self) -> Model:
        assert self.run is not None
        if (self.run / "model_index.json").is_file():  # it has ended meanwhile
            self._is_finished = True
            self._loaded = self._load(str(self.run))
            return self._loaded
        there = sorted(path.name for path in (self.run / "checkpoints").glob("step-*"))
        if self._loaded is not None and there == self._seen:
            return self._loaded
        newest = newest_complete(self.run / "checkpoints")
        if newest is None:
            raise ValueError(
                f"{self.name} has no checkpoint yet to draw from; its curves are there, and training.checkpoint_every "
                "says when the first one comes"
            )
        self._seen = there
        if self._loaded is None or self._loaded.step != step_of(newest):
            self._loaded = self._load(str(newest), step_of(newest))
        return self._loaded

    def _load(self, folder: str, step: int | None = None) -> Model:
        diffusers.utils.logging.disable_progress_bar()  # that of loading a model's two parts
        diffusers.utils.logging.set_verbosity_error()  # without it, diffusers also reports a missing model
        pipe: DDPMCustomPipeline = DDPMCustomPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.to(self.accelerator.device)
        pipe.unet.eval().requires_grad_(False)
        return Model(self.name, pipe, step)


def first_look(model: Model) -> int:
    """How many images a page shows by itself when it is opened: fewer, the larger they are."""
    side = max(model.shape[1:])
    return 16 if side <= 32 else 4 if side <= 64 else 1
