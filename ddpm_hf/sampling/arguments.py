"""What a pipeline's call may be given, in every form in which people give it; all else is refused in one sentence."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ddpm_hf.launch import usable_memory
from ddpm_hf.settings import as_int, as_ints, shown

OUTPUT_TYPES: Final = ("pil", "np", "numpy", "pt", "uint8", "values")


def check_output_type(output_type: Any) -> None:
    """Refuse a form of images that there is not.

    Raises:
        ValueError: in one sentence.
    """
    if not (isinstance(output_type, str) and output_type in OUTPUT_TYPES):
        raise ValueError(f"output_type={shown(output_type)} is not known; use one of {', '.join(OUTPUT_TYPES)}.")


def check_generator(generator: Any) -> None:
    """See that there is one generator, or a list of them, or none.

    Raises:
        ValueError: there is something else.
    """
    each = generator if isinstance(generator, list | tuple) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError(f"generator={shown(generator)} must be a torch.Generator, or a list of one per image.")


def number_of_images(given: dict[str, Any]) -> int:
    """The number of images that all arguments agree on: by name, each a number, something with a length, or neither.

    Raises:
        ValueError: they do not agree, or the number is no whole one from 1.
    """
    lengths = {name: _length(name, value) for name, value in given.items()}
    known = {name: length for name, length in lengths.items() if length is not None}
    if len(set(known.values())) > 1:
        counts = ", ".join(f"{length} by {name}" for name, length in known.items())
        raise ValueError(f"The number of images is given as {counts}; make them equal.")
    size = next(iter(known.values()), 1)
    if size < 1:
        raise ValueError(f"The number of images is {size}; ask for at least one.")
    return size


def _length(name: str, value: Any) -> int | None:
    if name == "batch_size":
        return None if value is None else as_int(name, value)
    has_length = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return len(value) if has_length or getattr(value, "ndim", 0) > 0 else None


def check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a batch of images, (B, C, H, W), that no memory holds, before anything is drawn.

    Raises:
        ValueError: with the number of images that could be drawn at once, at most.
    """
    is_cuda = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device)[1] if is_cuda else usable_memory()
    # A step holds at least x_t, the network's output, the predicted x_0 and the next x_t, in float32 or half of it; and
    # a generator, which images may have each, has 5 KiB.
    image = 4 * 2 * shape[1] * shape[2] * shape[3] + 5 * 2**10
    if shape[0] * image > memory:
        raise ValueError(
            f"{shape[0]} images of {shape[1]} x {shape[2]} x {shape[3]} need more than the {memory / 2**30:.0f} GiB of "
            f"memory that there are; draw at most {memory // image} at once, or use ddpm-hf-sample, which draws in "
            "batches."
        )


def label_tensor(class_labels: Any, unet: Any, batch_size: int, device: torch.device) -> Tensor | None:
    """Class labels, one for all or one per image, as int64 (B,) on a device.

    Raises:
        ValueError: they are not whole numbers, or no classes of this network.
    """
    if class_labels is None:
        return None
    if unet.config.class_embed_type == "identity":
        raise ValueError(
            "this UNet takes vectors in place of classes (class_embed_type 'identity'); give them to denoise."
        )
    is_one = getattr(class_labels, "ndim", None) == 0 or isinstance(class_labels, int)
    labels = [as_int("class_labels", class_labels)] if is_one else as_ints("class_labels", class_labels)
    known = unet.config.num_class_embeds
    outside = [label for label in labels if not 0 <= label < (2**31 if known is None else known)]
    if outside:
        classes = "whole numbers from 0" if known is None else f"0 to {known - 1}"
        raise ValueError(f"class_labels holds {outside[0]}, and this UNet's classes are {classes}.")
    return torch.tensor(labels, dtype=torch.int64, device=device).expand(batch_size)
