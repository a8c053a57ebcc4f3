"""How many bits per dimension a model needs for images: the variational bound, a quick estimate of it, and the ODE.

All that is random about an image follows from (seed, its index), so that neither the batch size nor the number of
processes changes it; and all but the network is computed in float64 on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_hf.data import random_stream
from ddpm_hf.diffusion import GaussianDiffusion
from ddpm_hf.variational import bound_term, prior_term, split_variance

METHODS: Final = ("bound", "estimate", "ode")

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t float64 (B, C, H, W), t int64 (B,), labels int64 (B,) or None) -> float64 (B, C or 2C, H, W), on the CPU."""


@dataclass(frozen=True)
class Model:
    """A network with what its output means.

    Args:
        network: the network.
        diffusion: the process that it was trained on.
        prediction_type: one of `diffusion.PREDICTION_TYPES`.
        variance_type: one of `diffusion.VARIANCE_TYPES`, for the bound.
        clip_range: the bound clips the predicted x_0 to it, as samplers do; None leaves it.
    """

    network: Network
    diffusion: GaussianDiffusion
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    clip_range: float | None = None

    @classmethod
    def of(cls, pipe: Any) -> Self:
        """That of a pipeline, by its scheduler's config.

        Raises:
            ValueError: if the scheduler is none of ours.
        """
        unet, config = pipe.unet, pipe.scheduler.config
        if not isinstance(getattr(pipe.scheduler, "diffusion", None), GaussianDiffusion):
            raise ValueError(
                f"bits per dimension need the noise schedule of a DDPMScheduler or DDIMScheduler of ddpm_hf, and this "
                f"pipeline has a {type(pipe.scheduler).__name__}; give it one by from_config."
            )

        def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            labels = None if labels is None else labels.to(unet.device)
            output: Tensor = unet(x_t.to(unet.device, unet.dtype), t.to(unet.device), labels).sample
            return output.cpu().double()

        clip_range = config.clip_sample_range if config.clip_sample else None
        variance_type = config.get("variance_type", "fixed_small")
        return cls(network, pipe.scheduler.diffusion, config.prediction_type, variance_type, clip_range)


@dataclass(frozen=True)
class BitsPerDim:
    """Of each image, in float64.

    Args:
        values: (N,).
        terms: of the bound, (N, T + 1): those of t = 0 .. T-1, and L_T. None from other methods.
    """

    values: Tensor
    terms: Tensor | None = None

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean, as an estimate for all images of their kind: by chance of the images and of the noise."""
        return float(self.values.std()) / math.sqrt(len(self.values))


def bits_per_dim(
    pipe: Any,
    images: Tensor,
    accelerator: Accelerator | None = None,
    method: str = "bound",
    *,
    seed: int = 0,
    batch_size: int = 128,
    class_labels: Tensor | None = None,
    timesteps_per_image: int = 10,
    num_steps: int = 100,
    show_progress: bool = False,
) -> BitsPerDim:
    """The code length of images under a model, shared out over all processes.

    * `bound`: every term of the variational bound, one noise for each (Ho et al. 2020, eq. 5): T passes per image.
    * `estimate`: L_T, L_0 and some of the other terms at random, unbiased: 1 + `timesteps_per_image` passes.
    * `ode`: the likelihood of the probability-flow ODE: about 2 `num_steps` passes with gradients. See `ode_nats`.

    Args:
        pipe: a DDPMCustomPipeline with a scheduler of ours; its network on the accelerator's device.
        images: uint8 (N, C, H, W), the same on every process.
        accelerator: its processes share the work; None for this process alone.
        method: one of `METHODS`.
        seed: of all that is random; image i depends on (seed, i) alone.
        batch_size: images computed at once.
        class_labels: int64 (N,), for a class-conditional network.
        timesteps_per_image: of `estimate`.
        num_steps: of `ode`; of a model with fewer timesteps, all of those.
        show_progress: a bar with rate and ETA, for one process.

    Returns:
        The same on every process.

    Raises:
        ValueError: for an unknown method, or images or numbers that do not fit the model.
    """
    model = Model.of(pipe)
    total = model.diffusion.num_train_timesteps
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; use one of {', '.join(METHODS)}.")
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"bits per dimension are those of uint8 images, (N, C, H, W), N >= 1; these are {tuple(images.shape)} of "
            f"{str(images.dtype).removeprefix('torch.')}."
        )
    for name, number in (("timesteps_per_image", timesteps_per_image), ("num_steps", num_steps)):
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1.")

    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = accelerator.device if accelerator else torch.device("cpu")
    results = torch.zeros(len(images), total + 1 if method == "bound" else 1, dtype=torch.float64)
    was_training = pipe.unet.training
    pipe.unet.eval()
    starts = range(rank * batch_size, len(images), processes * batch_size)
    for start in tqdm(starts, desc="bits/dim", unit="batch", disable=not show_progress, leave=False):
        stop = min(start + batch_size, len(images))
        x_0 = images[start:stop].cpu().double() / 127.5 - 1
        streams = [random_stream("likelihood", seed, index) for index in range(start, stop)]
        labels = None if class_labels is None else class_labels[start:stop]
        if method == "bound":
            results[start:stop] = bound_terms(model, x_0, streams, labels)
        elif method == "estimate":
            results[start:stop, 0] = bound_estimate(model, x_0, streams, labels, timesteps_per_image)
        else:
            dequantised = x_0 + (_drawn(streams, x_0, np.random.Generator.random) - 0.5) / 127.5
            nats = ode_nats(model, dequantised, streams, labels, num_steps)
            # A level's probability is the density at it times its width of 2/255.
            results[start:stop, 0] = nats / math.log(2) / x_0[0].numel() + math.log2(127.5)
    pipe.unet.train(was_training)
    if accelerator is not None and processes > 1:
        results = accelerator.reduce(results.to(device), reduction="sum").cpu()
    return BitsPerDim(results.sum(dim=1), results if method == "bound" else None)


@torch.no_grad()
def bound_terms(
    model: Model, x_0: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None = None
) -> Tensor:
    """Every term of the bound, each with one noise of its own.

    Args:
        model: the model.
        x_0: float64 (B, C, H, W) on the 256 levels in [-1, 1].
        streams: one for each image.
        labels: int64 (B,) or None.

    Returns:
        float64 (B, T + 1) in bits/dim: L_0 .. L_{T-1} by the time that the step leaves, and L_T.
    """
    times = (torch.full((len(x_0),), t) for t in range(model.diffusion.num_train_timesteps))
    terms = [_term(model, x_0, t, streams, labels) for t in times]
    return torch.stack([*terms, prior_term(model.diffusion, x_0)], dim=1)


@torch.no_grad()
def bound_estimate(
    model: Model,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    timesteps_per_image: int = 10,
) -> Tensor:
    """An unbiased estimate of the sum of `bound_terms`, float64 (B,): L_0 and L_T, and K terms in between.

    The terms fall about as 1 / t (Nichol & Dhariwal 2021, figure 2), so the times are drawn with p(t) = 1 / (t H) on
    1 .. T-1, one in each K-th part of the probability, and each term counts 1 / (K p(t)).
    """
    steps = model.diffusion.num_train_timesteps
    total = prior_term(model.diffusion, x_0)
    total += _term(model, x_0, torch.zeros(len(x_0), dtype=torch.int64), streams, labels)
    share = 1 / torch.arange(1, steps, dtype=torch.float64)
    share /= share.sum()
    for k in range(timesteps_per_image if steps > 1 else 0):
        position = torch.tensor([(k + stream.random()) / timesteps_per_image for stream in streams], dtype=share.dtype)
        drawn = torch.searchsorted(share.cumsum(0)[:-1], position, right=True)
        total += _term(model, x_0, 1 + drawn, streams, labels) / (timesteps_per_image * share[drawn])
    return total


def ode_nats(
    model: Model,
    x_0: Tensor,
    streams: Sequence[np.random.Generator],
    labels: Tensor | None = None,
    num_steps: int = 100,
) -> Tensor:
    """-log p(x_0) of the probability-flow ODE (Song et al. 2021, "Score-based", section 4.3), float64 (B,).

    With x = cos(phi) x_0 + sin(phi) noise the ODE is dx/dphi = v(x, phi) (Salimans & Ho 2022, appendix D), from clean
    data at phi = 0 (where v, the expected noise, is 0) to the model's last time, whose density is N(0, I). The log
    density changes by minus the divergence of v, which is estimated with one random sign per value (Hutchinson).

    Args:
        model: the model.
        x_0: float64 (B, C, H, W), dequantised.
        streams: one for each image.
        labels: int64 (B,) or None.
        num_steps: steps of Heun's method, on an even grid of the model's own times.
    """
    signs = 2.0 * (_drawn(streams, x_0, np.random.Generator.random) < 0.5) - 1
    x, divergence_so_far, phi = x_0, torch.zeros(len(x_0), dtype=torch.float64), 0.0
    v, divergence = torch.zeros_like(x_0), torch.zeros(len(x_0), dtype=torch.float64)
    times = np.unique(np.linspace(model.diffusion.num_train_timesteps - 1, 0, num_steps).round().astype(int)).tolist()
    for t in times:
        step, phi = _angle(model, t) - phi, _angle(model, t)
        ahead, divergence_ahead = _velocity(model, x + step * v, t, labels, signs)
        x = x + step / 2 * (v + ahead)
        divergence_so_far = divergence_so_far + step / 2 * (divergence + divergence_ahead)
        if t != times[-1]:
            v, divergence = _velocity(model, x, t, labels, signs)
    prior = (x.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1) / 2
    return prior - divergence_so_far


def _angle(model: Model, t: int) -> float:
    alpha_bar = float(model.diffusion.alpha_bar(t))
    return math.atan2(math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar))


def _velocity(model: Model, x: Tensor, t: int, labels: Tensor | None, signs: Tensor) -> tuple[Tensor, Tensor]:
    """v at x and the estimate of its divergence, (B, ...) and (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        times = torch.full((len(x),), t)
        prediction, _ = split_variance(model.network(x, times, labels), x.shape[1])
        x_0, noise = model.diffusion.predict(prediction, x, times, model.prediction_type)
        phi = _angle(model, t)
        v = math.cos(phi) * noise - math.sin(phi) * x_0
        (gradient,) = torch.autograd.grad((v * signs).sum(), x)
    return v.detach(), (gradient * signs).flatten(1).sum(dim=1)


def _term(
    model: Model, x_0: Tensor, t: Tensor, streams: Sequence[np.random.Generator], labels: Tensor | None
) -> Tensor:
    x_t = model.diffusion.q_sample(x_0, t, _drawn(streams, x_0, np.random.Generator.standard_normal))
    output = model.network(x_t, t, labels)
    return bound_term(
        model.diffusion, output, x_0, x_t, t, model.prediction_type, model.variance_type, model.clip_range
    )


def _drawn(streams: Sequence[np.random.Generator], like: Tensor, draw: Callable[..., Any]) -> Tensor:
    """One draw of each image's stream, float64 of the images' shape."""
    return torch.from_numpy(np.stack([draw(stream, tuple(like.shape[1:])) for stream in streams]))
