"""Bits per dimension of images under a model, shared out over all processes.

All that is random about an image follows from (seed, its index), so that neither the batch size nor the number of
processes changes it; and all but the network is computed in float64 on the CPU.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.likelihood import METHODS, bound_estimate, bound_terms, drawn
from ddpm_hf.diffusion.probability_flow import nats_on_grid, nats_within
from ddpm_hf.launch import compute_in_shares
from ddpm_hf.pixels import TORCH, PixelFormat
from ddpm_hf.randomness import random_stream
from ddpm_hf.settings import as_int


@dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are computed.

    * `bound`: every term of the variational bound, one noise for each (Ho et al. 2020, eq. 5): T passes per image.
    * `estimate`: L_T, L_0 and some of the other terms at random, unbiased: 1 + `timesteps_per_image` passes.
    * `ode`: the likelihood of the probability-flow ODE, by as many passes with gradients as the tolerances ask for, or
      about 2 `num_steps`. See `diffusion.probability_flow`.

    Args:
        method: one of `METHODS`.
        timesteps_per_image: how many other terms `estimate` draws for each image.
        rtol: relative tolerance of each step of `ode`.
        atol: absolute tolerance of each step of `ode`.
        num_steps: steps of `ode` on a fixed grid, in place of tolerances: quicker, with an error that nobody knows. A
            model with fewer timesteps uses all of them.
        seed: all that is random about image i follows from (seed, i).

    Raises:
        ValueError: for an unknown method, a number below 1, or a tolerance outside 1e-10 .. 0.1.
    """

    method: str = "bound"
    timesteps_per_image: int = 10
    rtol: float = 1e-5
    atol: float = 1e-5
    num_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not known; use one of {', '.join(METHODS)}.")
        for name in ("timesteps_per_image", "num_steps"):
            value = getattr(self, name)
            if value is not None and as_int(name, value) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        for name in ("rtol", "atol"):
            if not 1e-10 <= getattr(self, name) <= 0.1:  # which nan is not either
                raise ValueError(f"{name}={getattr(self, name)} must be from 1e-10 to 0.1; 1e-5 is usual.")
        if as_int("seed", self.seed) < 0:
            raise ValueError(f"seed={self.seed} must be at least 0.")


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of each image, in float64.

    Args:
        values: (N,).
        terms: terms of the variational bound, (N, T + 1): those of t = 0 .. T-1, and L_T. None for other methods.
        evaluations: how often the network was asked for each image, the mean over images.
    """

    values: Tensor
    terms: Tensor | None = None
    evaluations: float = 0.0

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, from the spread over images, which includes that of the noise; nan of one."""
        return float(self.values.std()) / math.sqrt(len(self.values))


def denoiser_in_float64(pipe: Any) -> Denoiser:
    """The denoiser of a pipeline, which takes and gives float64 on the CPU, wherever and however the network computes.

    Raises:
        ValueError: if the scheduler is none of ours.
    """
    unet, denoiser = pipe.unet, getattr(pipe.scheduler, "denoiser", None)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"bits per dimension need the noise schedule of a DDPMScheduler or DDIMScheduler of ddpm_hf, and this "
            f"pipeline has a {type(pipe.scheduler).__name__}; give it one by from_config."
        )

    def network(x_t: Tensor, t: int | Tensor, labels: Tensor | None) -> Tensor:
        labels = None if labels is None else labels.to(unet.device)
        output: Tensor = unet(x_t.to(unet.device, unet.dtype), torch.as_tensor(t, device=unet.device), labels).sample
        return output.cpu().double()

    return denoiser.of(network)


def bits_per_dim(
    pipe: Any,
    images: Tensor,
    likelihood: Likelihood = Likelihood(),
    *,
    class_labels: Tensor | None = None,
    accelerator: Accelerator | None = None,
    batch_size: int = 128,
    show_progress: bool = False,
) -> BitsPerDim:
    """The code length of images under a model, shared out over all processes.

    Args:
        pipe: a DDPMCustomPipeline with a scheduler of ours; its network on the accelerator's device.
        images: (N, C, H, W) of whole numbers of the type of `pipe.format`, uint8 or uint16; the same on every process.
        likelihood: how it is computed.
        class_labels: int64 (N,), for a class-conditional network.
        accelerator: its processes share the work; None for this process alone.
        batch_size: images computed at once.
        show_progress: tell how far it is, on this process.

    Returns:
        The same on every process.

    Raises:
        ValueError: for images that do not fit the model, or whose bits are not defined or not finite.

    Examples:
        >>> from ddpm_hf import DDPMCustomPipeline
        >>> pipe = DDPMCustomPipeline.from_pretrained("runs/digits")
        >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        >>> bits_per_dim(pipe, images, Likelihood("estimate")).values.shape
        torch.Size([4])
    """
    format: PixelFormat = pipe.format
    if likelihood.method == "ode" and likelihood.num_steps is None and _knows_whole_times_only(pipe.unet):
        raise ValueError(
            "the ode with tolerances asks the network at fractions of timesteps, and time_embedding_type='learned' "
            "knows whole ones only; give num_steps (--ode_steps), a number of steps on a fixed grid."
        )
    denoiser = replace(denoiser_in_float64(pipe), half_bin=format.half_bin)
    if images.dtype != TORCH[format.dtype] or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"bits per dimension of this model are those of {format.dtype} images, (N, C, H, W), N >= 1; these are "
            f"{tuple(images.shape)} of {str(images.dtype).removeprefix('torch.')}."
        )
    low = torch.tensor(format.low, dtype=torch.float64)[:, None, None]
    half_range = (torch.tensor(format.high, dtype=torch.float64)[:, None, None] - low) / 2
    if class_labels is not None and len(class_labels) != len(images):
        raise ValueError(f"{len(class_labels)} class_labels came with {len(images)} images; give one per image.")
    if as_int("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more.")

    def compute(batch: range) -> Tensor:
        x_0 = ((images[batch.start : batch.stop].cpu().double() - low) / half_range - 1).clamp(-1, 1)
        streams = [random_stream("likelihood", likelihood.seed, index) for index in batch]
        labels = None if class_labels is None else class_labels[batch.start : batch.stop]
        if likelihood.method == "bound":
            return bound_terms(denoiser, x_0, streams, labels)
        if likelihood.method == "estimate":
            return bound_estimate(denoiser, x_0, streams, labels, likelihood.timesteps_per_image)[:, None]
        dequantised = x_0 + (drawn(streams, x_0, np.random.Generator.random) - 0.5) / half_range
        if likelihood.num_steps is None:
            nats = nats_within(denoiser, dequantised, streams, labels, likelihood.rtol, likelihood.atol)
        else:
            nats = nats_on_grid(denoiser, dequantised, streams, labels, likelihood.num_steps)
        # A level's probability is the density at it times its width, 1 / half_range.
        bits = nats.values / math.log(2) / x_0[0].numel() + half_range.log2().mean()
        return torch.stack([bits, torch.full_like(bits, nats.evaluations)], dim=1)

    was_training = pipe.unet.training
    pipe.unet.eval()
    progress = "bits/dim" if show_progress else None
    results = compute_in_shares(compute, len(images), batch_size, accelerator, progress=progress)
    pipe.unet.train(was_training)
    spoilt = len(results) - int(results.isfinite().flatten(1).all(dim=1).sum())
    if spoilt:
        raise ValueError(
            f"{spoilt} of {len(results)} images need bits that are not a finite number; the weights are not, or "
            f"{pipe.unet.dtype} is too narrow for this network: look at the checkpoint, or use float32"
        )
    if likelihood.method == "ode":
        return BitsPerDim(results[:, 0], evaluations=float(results[:, 1].mean()))
    steps = denoiser.diffusion.num_train_timesteps
    if likelihood.method == "bound":
        return BitsPerDim(results.sum(dim=1), results, steps)
    return BitsPerDim(results.sum(dim=1), evaluations=1 + (likelihood.timesteps_per_image if steps > 1 else 0))


def _knows_whole_times_only(unet: Any) -> bool:
    return bool(getattr(unet.config, "time_embedding_type", None) == "learned")
