"""The parts of a training step besides its batch: what goes together, the optimizer, the learning rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pkgutil import resolve_name

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from ddpm_hf.data.sources import ImageSource
from ddpm_hf.diffusion.losses import Objective, training_loss
from ddpm_hf.launch import allow_tf32
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.sampling.denoising import image_shape
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.settings import named
from ddpm_hf.training.choices import LR_SCHEDULES, OPTIMIZERS
from ddpm_hf.training.settings import TrainingConfig


def check_fit(data: ImageSource, unet: UNet2DModel, scheduler: DDPMScheduler, training: TrainingConfig) -> None:
    """Check that images, network and objective fit together, before anything is trained or written.

    Raises:
        ValueError: with the setting to change.
    """
    channels, height, width = data.shape
    config, variance_type = unet.config, scheduler.config.variance_type
    out_channels = 2 * channels if variance_type.startswith("learned") else channels
    if (config.in_channels, config.out_channels) != (channels, out_channels):
        twice = f", twice as many out for diffusion.variance_type {variance_type}" if out_channels > channels else ""
        raise ValueError(
            f"the images of {data.name!r} have {channels} channels and the network {config.in_channels} in and "
            f"{config.out_channels} out; give --model.in_channels {channels} --model.out_channels {out_channels}{twice}"
            ", or null to both, which follow the images"
        )
    if config.sample_size is None or image_shape(unet)[1:] != (height, width):
        wanted = str(height) if height == width else f"[{height},{width}]"
        raise ValueError(
            f"the images of {data.name!r} are {height} x {width} and model.sample_size is "
            f"{config.sample_size}; give --model.sample_size {wanted}, or null, which follows the images"
        )
    if config.num_class_embeds is not None:
        if data.num_classes is None:
            raise ValueError(
                f"model.num_class_embeds is set, but {data.name!r} has no labels; give data.label_column where a "
                "column of it holds them, or set that to null"
            )
        if data.num_classes > config.num_class_embeds:
            raise ValueError(
                f"{data.name!r} has labels up to {data.num_classes - 1} and model.num_class_embeds is "
                f"{config.num_class_embeds}; make it {data.num_classes} or more"
            )
    if training.label_dropout > 0:
        needed = (data.num_classes or 0) + 1
        if config.num_class_embeds is None or config.num_class_embeds < needed:
            raise ValueError(
                f"training.label_dropout is {training.label_dropout} and needs model.num_class_embeds of {needed} or "
                f'more, the last for "no class"; it is {config.num_class_embeds}'
            )
    diffusion = scheduler.diffusion
    if scheduler.config.prediction_type == "epsilon" and diffusion.alpha_bar(len(scheduler) - 1) == 0:
        raise ValueError(
            "diffusion.prediction_type is 'epsilon', which says nothing about the image at the last timestep, where "
            "this noise schedule leaves nothing of it; use v_prediction or sample"
        )
    if training.loss != "simple":
        with named(f"training.loss is {training.loss}, which counts bits: "):
            data.format.half_bin  # noqa: B018  # which there may not be
    # The objective and the network each know best what they cannot do, so both are asked; on meta that costs nothing.
    image, output = torch.zeros(1, channels, height, width), torch.zeros(1, out_channels, height, width)
    training_loss(scheduler.denoiser, output, image, image, torch.tensor([0]), objective_of(training))
    with torch.device("meta"):
        label = None if config.num_class_embeds is None else torch.zeros(1, dtype=torch.int64)
        UNet2DModel.from_config(config)(
            torch.zeros(1, channels, height, width), torch.zeros(1, dtype=torch.int64), label
        )


def check_optimizer(training: TrainingConfig, accelerator: Accelerator) -> None:
    """Check that the optimizer sees what it works on.

    Raises:
        ValueError: it takes whole matrices, and this run's are sharded.
    """
    if training.optimizer == "muon" and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "training.optimizer is muon, which orthogonalises whole matrices, and FSDP leaves each process a part; use "
            "adam or adamw, or start the processes with configs/accelerate/multi_gpu.yaml"
        )


def objective_of(training: TrainingConfig) -> Objective:
    """The objective that the settings name."""
    return Objective(
        training.loss, training.vlb_weight, training.loss_weighting, training.min_snr_gamma, training.p2_gamma
    )


def prepare_network(unet: UNet2DModel, training: TrainingConfig) -> None:
    """Apply, in place, the settings that make a step faster or smaller without changing what it computes."""
    allow_tf32(training.tf32)
    if training.channels_last:
        unet.to(memory_format=torch.channels_last)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if training.compile:
        unet.compile()


def shard_by_blocks(accelerator: Accelerator, unet: UNet2DModel) -> None:
    """Let FSDP, where it is asked for, shard each block of the network by itself, unless the launcher names others.

    accelerate's newer versions ask the network; the older ones then shard it as a whole.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = unet._no_split_modules


@dataclass(frozen=True)
class OptimizerOptions:
    """The options given to every optimizer; it may ignore those that it has no use for.

    Args:
        learning_rate: learning rate after the warm-up.
        betas: decay rates of the first and second moments.
        weight_decay: decay of the weights.
    """

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that the settings name, from `choices.OPTIMIZERS`."""
    options = OptimizerOptions(config.learning_rate, config.betas, config.weight_decay)
    optimizer: torch.optim.Optimizer = resolve_name(OPTIMIZERS[config.optimizer])(parameters, options)
    return optimizer


def adam(parameters: Iterable[nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """Kingma & Ba 2015, with L2 regularisation; one kernel for all parameters where the device has one."""
    lr, betas, weight_decay = options.learning_rate, options.betas, options.weight_decay
    return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def adamw(parameters: Iterable[nn.Parameter], options: OptimizerOptions) -> torch.optim.Optimizer:
    """Loshchilov & Hutter 2019, with decoupled weight decay; one kernel for all parameters where the device has one."""
    lr, betas, weight_decay = options.learning_rate, options.betas, options.weight_decay
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of ``step`` = 0, 1, ...: a linear warm-up, then the schedule, near 0 at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    factor: float = resolve_name(LR_SCHEDULES[config.lr_schedule])(progress)
    return config.learning_rate * factor


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine, from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float) -> float:
    """A line, from 1 to 0."""
    return 1 - progress
