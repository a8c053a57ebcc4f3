"""A network in the form that draws many images fastest: compiled, its weights in channels_last.

On a CPU a pass of the digits network takes 0.70 of the time, after 15 s of compiling, and one of CIFAR-10's 0.95, after
41 s (`python -m benchmarks inference`). So it pays where the passes together take many minutes. What decides must not
be a clock: a seed's image, whose last bits depend on the form, would be another one the next day.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.sampling.denoising import image_shape

WORTH_COMPILING = {"cpu": 1e14, "cuda": 3e15}
"""Floating-point operations of all passes together: some ten minutes of a CPU, some minutes of a GPU."""


class NotCompiled(ValueError):
    """There is no compiler, or it failed."""


def is_worth_compiling(unet: Any, num_passes: int) -> bool:
    """Whether drawing takes so long that compiling is made up for.

    Args:
        unet: The network, on its device.
        num_passes: Through the network, over all images.
    """
    enough = WORTH_COMPILING.get(unet.device.type)
    return enough is not None and num_passes * operations_of_a_pass(unet) >= enough


def operations_of_a_pass(unet: Any) -> int:
    """Multiplications and additions of one pass of one image; computes nothing."""
    labels = None
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = type(unet).from_config(unet.config)
        if unet.config.num_class_embeds is not None:
            labels = torch.zeros(1, dtype=torch.int64)
        network(torch.zeros(1, *image_shape(unet)), torch.zeros(1, dtype=torch.int64), labels)
    return int(counter.get_total_flops())


@torch.no_grad()
def compile_for_drawing(unet: Any, num_images: int) -> None:
    """Compile a network, in place, for passes of one number of images.

    Raises:
        NotCompiled: it stays as it was.
    """
    unet.to(memory_format=torch.channels_last)
    unet.compile(dynamic=False)
    images = torch.zeros(num_images, *image_shape(unet), dtype=unet.dtype, device=unet.device)
    labels = None
    if unet.config.num_class_embeds is not None:
        labels = torch.zeros(num_images, dtype=torch.int64, device=unet.device)
    try:
        unet(images, torch.tensor(0, device=unet.device), labels)
    except Exception as error:  # the compiler's, or that of the compiler that it calls: they have nothing in common
        leave_uncompiled(unet)
        raise NotCompiled(f"the network cannot be compiled ({str(error).strip().splitlines()[0]})") from error


def leave_uncompiled(unet: Any) -> None:
    """Undo `compile_for_drawing`."""
    unet.to(memory_format=torch.contiguous_format)
    unet._compiled_call_impl = None  # torch knows no other way back
