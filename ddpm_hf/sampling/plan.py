"""From what somebody asks for to what is done: the sampler on its timesteps, the class of each image, the options."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_hf.sampling.denoising import SamplingOptions, no_class_of, step_options_of
from ddpm_hf.sampling.request import Request, classes_of
from ddpm_hf.sampling.samplers import check_start, make_scheduler


@dataclass(frozen=True)
class Plan:
    """How a model draws the images of a `Request`.

    Args:
        request: What was asked for.
        scheduler: A scheduler of its own, with the timesteps set.
        labels: The class of each image, int64 ``(num_images,)``; None for a model without classes.
        options: How a step is taken.
    """

    request: Request
    scheduler: Any
    labels: Tensor | None
    options: SamplingOptions


def planned(request: Request, unet: Any, scheduler: Any, name: str) -> Plan:
    """See that a model can draw what is asked for, and plan it.

    Args:
        request: What is asked for.
        unet: The model's network.
        scheduler: The model's scheduler, which stays as it is.
        name: The model's name, for messages.

    Raises:
        ValueError: it cannot, in one sentence.
    """
    own = scheduler.config
    if request.scheduler is not None:
        scheduler = make_scheduler(own, request.scheduler, request.timestep_spacing)
    elif request.timestep_spacing is not None:
        scheduler = type(scheduler).from_config(own, timestep_spacing=request.timestep_spacing)
    else:
        scheduler = copy.deepcopy(scheduler)
    labels = _labels_of(request, unet, name)
    scheduler.set_timesteps(request.num_inference_steps)
    options = SamplingOptions(request.eta, request.guidance_scale, guidance_interval=request.guidance_interval)
    step_options_of(scheduler, options)  # refuses one that the scheduler lacks
    check_start(scheduler)
    return Plan(request, scheduler, labels, options)


def _labels_of(request: Request, unet: Any, name: str) -> Tensor | None:
    num_classes = unet.config.num_class_embeds
    if num_classes is None:
        if request.class_labels is not None:
            raise ValueError(f"class_labels is {request.class_labels!r}, but {name} knows no classes")
        return None
    if request.class_labels is None:
        raise ValueError(
            f"{name} knows {num_classes} classes; say which to draw, in turn, such as --class_labels "
            f"0-{num_classes - 1}"
        )
    classes = classes_of(request.class_labels)
    has_no_class = request.guidance_scale != 1
    last = no_class_of(unet) - 1 if has_no_class else num_classes - 1
    if max(span[-1] for span in classes) > last:
        beside = ', and one more for "no class"' if has_no_class else ""
        raise ValueError(f"class_labels is {request.class_labels!r}, and the model has classes 0 to {last}{beside}")
    in_turn = [label for span in classes for label in span]
    return torch.tensor(in_turn)[torch.arange(request.num_images) % len(in_turn)]
