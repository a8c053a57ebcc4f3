"""From noise, or from seeds, to images: the reverse process run by any scheduler, on one process or many."""

import copy
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ddpm_hf.diffusion.denoiser import Guided, Network, split_variance
from ddpm_hf.launch import compute_in_shares
from ddpm_hf.pixels import EIGHT_BITS, PixelFormat
from ddpm_hf.randomness import generators_of
from ddpm_hf.sampling.guidance import guided_steps
from ddpm_hf.sampling.request import check_interval
from ddpm_hf.sampling.samplers import check_start
from ddpm_hf.schedulers.base import GaussianScheduler
from ddpm_hf.settings import check_types

logger = logging.getLogger(__name__)

OnStep = Callable[[int, Tensor, Tensor, Tensor | None], Tensor | None]
"""(index of the step, t, x_s, predicted x_0 or None) -> the x_s to go on with; None leaves it."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a scheduler and a network are used, besides the timesteps, which are the scheduler's.

    Args:
        eta: 0 (DDIM) .. 1 (DDPM's noise), for a scheduler that has it.
        guidance_scale: w of unconditional + w (conditional - unconditional); 1 is no guidance.
        guidance_interval: the noise levels (sigma_low, sigma_high] at which there is guidance, as `guided_steps` reads
            them; None for all.
        use_clipped_model_output: see `DDIMScheduler.step`; None is True with guidance, else False.
        batch_size: images computed at once, where there are more.
        format: what the numbers of the images are to mean, in `sample_images`.

    Raises:
        ValueError: one of them is of another type or out of its range.
    """

    eta: float = 0.0
    guidance_scale: float = 1.0
    use_clipped_model_output: bool | None = None
    batch_size: int = 128
    format: PixelFormat = EIGHT_BITS
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_types(vars(self), get_type_hints(SamplingOptions))
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} is outside 0 (DDIM) .. 1 (DDPM).")
        if not abs(self.guidance_scale) <= LARGEST_GUIDANCE:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} must be from -{LARGEST_GUIDANCE} to {LARGEST_GUIDANCE}."
            )
        check_interval(self.guidance_interval, self.guidance_scale)
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be 1 or more.")


LARGEST_GUIDANCE = 10_000
"""Far above any that helps, and far below what float32 overflows with."""

DEFAULT = SamplingOptions()


def image_shape(unet: Any) -> tuple[int, int, int]:
    """(C, H, W) of what the network makes.

    Raises:
        ValueError: if the network's config does not say how large its images are.
    """
    size = unet.config.sample_size
    if size is None:
        raise ValueError(
            "the UNet's config has sample_size=None; set it to the images' size, an int or (height, width)."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return unet.config.in_channels, height, width


def network_of(unet: Any, augment_labels: Tensor | None = None) -> Network:
    """The UNet as a function (x_t, t, class labels) -> output; in training, for images that were augmented so."""
    told = {} if augment_labels is None else {"augment_labels": augment_labels}
    return lambda x_t, t, class_labels: unet(x_t, t, class_labels, **told).sample


def without_variance(network: Network) -> Network:
    """The network without the channels of a learned variance, which no scheduler of diffusers but DDPM's reads."""
    return lambda x_t, t, class_labels: split_variance(network(x_t, t, class_labels), x_t)[0]


def no_class_of(unet: Any) -> int:
    """The label that stands for "no class" in a network trained for guidance: the last one (Ho & Salimans 2022)."""
    return int(unet.config.num_class_embeds) - 1


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """The point at `share` of the great circle from start to end (Song et al., eq. 67), which keeps noise's length."""
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle < 1e-4:  # as good as parallel
        return torch.lerp(start, end, share.to(start))
    on_circle: Tensor = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
    return on_circle


@torch.no_grad()
def denoise(
    unet: Any,
    scheduler: Any,
    x_t: Tensor,
    options: SamplingOptions = DEFAULT,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    class_labels: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Run the reverse process over the scheduler's timesteps.

    The steps are taken by a copy of the scheduler. Many of diffusers' remember the steps before, and the next batch
    must not begin with those of this one.

    Args:
        unet: called as unet(x_t, t, class_labels).
        scheduler: any diffusers scheduler whose `set_timesteps` has been called, and that has taken no step since.
        x_t: (B, C, H, W), noise of unit variance, on the network's device.
        options: options of sampling; `batch_size` and `format` are not used here.
        generator: for the noise of later steps; one, or one per image.
        class_labels: int64 (B,) on the network's device.
        on_step: sees, and may change, each step's result.

    Returns:
        (B, C, H, W) of about [-1, 1].

    Raises:
        ValueError: for a step option that this scheduler lacks, guidance without class labels, or images with
            numbers that are not finite.
    """
    guidance_scale = options.guidance_scale
    step_options = step_options_of(scheduler, options, generator)
    scheduler = copy.deepcopy(scheduler)
    network: Network = network_of(unet)
    guided = network
    if guidance_scale != 1.0 and unet.config.num_class_embeds is None:
        logger.warning("guidance_scale=%s does nothing: this UNet knows no classes.", guidance_scale)
    elif guidance_scale != 1.0:
        # Guidance drives the predicted x_0 out of its range. Once that is clipped, the noise must be the one that makes
        # x_t of it: with the other, guided digits at eta = 0 turn into other digits.
        if "use_clipped_model_output" in inspect.signature(scheduler.step).parameters:
            step_options.setdefault("use_clipped_model_output", True)
        guided = Guided(network, guidance_scale, no_class_of(unet))
    network, guided = _as_read_by(scheduler, network), _as_read_by(scheduler, guided)
    is_guided = guided_steps(scheduler, options.guidance_interval)
    x_t = x_t * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(x_t, t)
        model_output = (guided if is_guided[i] else network)(model_input, t, class_labels)
        result = scheduler.step(model_output, t, x_t, **step_options)
        x_t = result.prev_sample
        if on_step is not None:
            changed = on_step(i, t, x_t, getattr(result, "pred_original_sample", None))
            x_t = x_t if changed is None else changed
    spoilt = len(x_t) - int(x_t.flatten(1).isfinite().all(dim=1).sum())
    if spoilt:
        raise ValueError(
            f"{spoilt} of {len(x_t)} images hold numbers that are not finite; the weights are not, or {x_t.dtype} is "
            "too narrow for this network: look at the checkpoint, or use float32"
        )
    return x_t


def _as_read_by(scheduler: Any, network: Network) -> Network:
    """The network with its output as the scheduler reads it."""
    if isinstance(scheduler, GaussianScheduler):
        output: Network = scheduler.denoiser.of(network).output
        return output
    return network if isinstance(scheduler, DDPMScheduler) else without_variance(network)


def step_options_of(scheduler: Any, options: SamplingOptions, generator: Any = None) -> dict[str, Any]:
    """Keyword arguments for `scheduler.step`; an option that it lacks may only say what it would do anyway.

    Raises:
        ValueError: if another one was given.
    """
    known = inspect.signature(scheduler.step).parameters
    wanted = {"eta": options.eta, "use_clipped_model_output": options.use_clipped_model_output}
    for name, value in wanted.items():
        if name not in known and value:
            raise ValueError(
                f"{type(scheduler).__name__} has no {name}, and {name}={value!r} was given; use DDIMScheduler."
            )
    wanted["generator"] = generator
    return {name: value for name, value in wanted.items() if name in known and value is not None}


def sample_images(
    unet: Any,
    scheduler: Any,
    seeds: range,
    options: SamplingOptions = DEFAULT,
    *,
    class_labels: Tensor | None = None,
    accelerator: Accelerator | None = None,
    show_progress: bool = False,
) -> Tensor:
    """The images of some seeds, each made from its own seed alone, shared out over all processes.

    Batches are cut from the whole, so any number of processes computes the same ones, to the same bits.

    Args:
        unet: the network, on its device; evaluated without dropout.
        scheduler: with its grid set.
        seeds: N of them, the same on every process.
        options: how each batch is drawn.
        class_labels: int64 (N,).
        accelerator: its processes share the work; None for this process alone.
        show_progress: tell how far it is, on this process.

    Returns:
        (N, C, H, W) of the type of `options.format` on the CPU, the same on every process.

    Raises:
        ValueError: as `denoise`, or if the scheduler cannot draw images from noise with such a network.

    Examples:
        >>> from ddpm_hf import DDPMCustomPipeline
        >>> pipe = DDPMCustomPipeline.from_pretrained("runs/digits")
        >>> pipe.scheduler.set_timesteps(10)
        >>> sample_images(pipe.unet, pipe.scheduler, seeds=range(4)).shape
        torch.Size([4, 1, 8, 8])
    """
    check_start(scheduler)
    shape, device = image_shape(unet), next(unet.parameters()).device

    def draw(batch: range) -> Tensor:
        generators = generators_of(seeds[batch.start : batch.stop])
        noise = randn_tensor((len(batch), *shape), generator=generators, device=device, dtype=unet.dtype)
        labels = None if class_labels is None else class_labels[batch.start : batch.stop].to(device)
        images = denoise(unet, scheduler, noise, options, generator=generators, class_labels=labels)
        return options.format.from_model(images)

    sharded = [module for module in unet.modules() if isinstance(module, FSDPModule)]
    was_training = unet.training
    unet.eval()
    images = compute_in_shares(
        draw,
        len(seeds),
        options.batch_size,
        accelerator,
        in_step=bool(sharded),  # each process needs the others' shards of the network
        progress="sampling" if show_progress else None,
    )
    unet.train(was_training)
    for module in sharded:
        module.reshard()  # or it would go on with these whole weights when the sharded ones have changed
    return images
