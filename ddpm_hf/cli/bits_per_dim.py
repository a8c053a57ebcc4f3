"""ddpm-hf-evaluate --metrics bits_per_dim: how many bits a model needs for real images, term by term."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ddpm_hf.data.sources import ImageData
from ddpm_hf.files import written_whole
from ddpm_hf.manifest import weights_hash
from ddpm_hf.metrics.bits_per_dim import Likelihood, bits_per_dim
from ddpm_hf.metrics.evaluation import Score
from ddpm_hf.metrics.figures import save_bound
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.sampling.denoising import image_shape
from ddpm_hf.settings import named


def check_model(name: str, pipe: DDPMCustomPipeline, reference: ImageData) -> None:
    """See that a model can be scored on some images.

    Args:
        name: The model's, for messages.
        pipe: The model.
        reference: The images.

    Raises:
        ValueError: its images have another type or shape than the reference's, or no bits; or it is class-conditional
            and the reference has no labels.
    """
    with named(f"{name} makes images that cannot be scored so: "):
        pipe.format.half_bin  # noqa: B018  # which there may not be
    if pipe.format.dtype != reference.format.dtype:
        raise ValueError(
            f"{name} makes {pipe.format.dtype} images and {reference.name} has {reference.format.dtype} ones; give "
            "images like those that it was trained on (--reference_dtype uint8 rounds those of 16 bits)"
        )
    shape = image_shape(pipe.unet)
    if shape != reference.shape:
        raise ValueError(
            f"{name} makes images of {shape} and {reference.name} has {reference.shape} (channels, height, width); "
            "give images like those that it was trained on"
        )
    if pipe.unet.config.num_class_embeds is not None and reference.labels is None:
        raise ValueError(f"{name} knows classes and {reference.name} has no labels; give images with labels")


def described(name: str, pipe: DDPMCustomPipeline, likelihood: Likelihood) -> dict[str, Any]:
    """The manifest's entries for the model."""
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    of_ode: dict[str, Any] = {}
    if likelihood.method == "ode" and likelihood.num_steps is None:
        of_ode = {"ode_rtol": likelihood.rtol, "ode_atol": likelihood.atol}
    elif likelihood.method == "ode":
        of_ode = {"ode_steps": likelihood.num_steps}
    return {
        "model": name,
        "weights_sha256": weights_hash(pipe.unet),
        "scheduler": config,
        "likelihood": likelihood.method,
        **of_ode,
    }


def score_model(
    pipe: DDPMCustomPipeline,
    reference: ImageData,
    likelihood: Likelihood,
    batch_size: int,
    output: Path,
    accelerator: Accelerator,
    show_progress: bool,
) -> tuple[dict[str, Score], float, dict[str, Callable[[], object]]]:
    """The mean of all images and its standard error; how often the network was asked for each image, on average; and
    what writes each image's figure and terms, and a picture.

    Args:
        pipe: The model.
        reference: The images.
        likelihood: How it is computed.
        batch_size: Images computed at once by each process.
        output: Folder for bits_per_dim.npz, with ``values`` ``(N,)`` and, for the variational bound, ``terms``
            ``(N, T + 1)``; and for bits_per_dim.png, a plot of the terms over time.
        accelerator: Its processes share the work.
        show_progress: Tell how far it is.
    """
    pipe.to(accelerator.device)
    labels = reference.labels if pipe.unet.config.num_class_embeds is not None else None
    found = bits_per_dim(
        pipe,
        torch.as_tensor(reference.images),
        likelihood,
        class_labels=labels,
        accelerator=accelerator,
        batch_size=batch_size,
        show_progress=show_progress,
    )
    table, picture, terms = output / "bits_per_dim.npz", output / "bits_per_dim.png", found.terms
    arrays = {"values": found.values.numpy()} | ({} if terms is None else {"terms": terms.numpy()})
    files: dict[str, Callable[[], object]] = {str(table): lambda: _save_arrays(table, arrays)}
    if terms is not None:
        files[str(picture)] = lambda: save_bound(picture, terms)
    score = Score(found.mean, found.standard_error if len(reference) > 1 else None)
    return {"bits_per_dim": score}, found.evaluations, files


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
