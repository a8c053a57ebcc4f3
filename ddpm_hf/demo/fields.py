"""From what stands in the fields of the page to what is drawn, without Gradio."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm_hf.sampling.request import Request
from ddpm_hf.settings import as_int

CANVAS = 384
"""Side that small images are enlarged to where a brush is to paint a part of them."""


def request_of(*values: Any) -> Request:
    """What the fields of `components.Settings` ask for, in their order.

    Raises:
        ValueError: a value is missing or wrong, in the sentence of ddpm-hf-sample.
    """
    seed, num_images, sampler, steps, spacing, eta, classes, guidance = values
    return Request(
        num_images=whole("num_images", num_images),
        seed=whole("seed", seed),
        scheduler=sampler or None,
        num_inference_steps=whole("num_inference_steps", steps),
        timestep_spacing=spacing or None,
        eta=float(eta or 0),
        class_labels=(classes or "").strip() or None,
        guidance_scale=1.0 if guidance is None else float(guidance),
    )


def whole(name: str, value: Any) -> int:
    """The whole number in a field.

    Raises:
        ValueError: the field is empty, or holds something else.
    """
    is_whole = isinstance(value, float) and value.is_integer()
    return as_int(name, int(value) if is_whole else value)


def opacity_of(layers: list[Image.Image], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """What a brush covers, ``(H, W)``, in all the layers of a picture of ``(width, height)``."""
    found = np.zeros(size[::-1], np.uint8)
    for layer in layers:
        found = np.maximum(found, np.array(layer.convert("RGBA").resize(size).getchannel("A")))
    return found


def for_a_brush(picture: Image.Image) -> Image.Image:
    """A picture that is large enough for a brush to paint a part of it."""
    factor = max(1, CANVAS // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
