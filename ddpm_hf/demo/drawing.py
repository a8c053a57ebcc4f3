"""What the page draws: images and their way out of the noise, walks between seeds, and parts painted anew.

Images come from the same call as those of ddpm-hf-sample, so that a seed's image is the same here and there.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ddpm_hf.demo.models import Model
from ddpm_hf.images import as_pictures, from_uint8, image_grid, to_pil, to_uint8
from ddpm_hf.randomness import generators_of
from ddpm_hf.recipes import pipeline_class
from ddpm_hf.sampling.pictures import walk
from ddpm_hf.sampling.plan import Plan
from ddpm_hf.sampling.request import Request
from ddpm_hf.settings import check, check_seed

MOST_IMAGES = 64
"""Images of one request: a page is no place for thousands, and others wait."""
MOST_FRAMES = 51
"""Moments of the way out of the noise that are kept."""
IN_FRAMES = 16
"""Images whose way is kept."""
MOST_BYTES, FEWEST_FRAMES = 2**24, 11
"""Memory that a way may take; but so many moments are kept in any case."""
COVERED = 0.25
"""Share of a pixel that a brush must cover for the pixel to be painted."""

OnStep = Callable[[int, int], None]
"""(steps done, steps in all)."""


@dataclass(frozen=True)
class Way:
    """Images on their way out of the noise.

    Args:
        timesteps: t of each moment, from pure noise to the finished image, at which it is 0.
        samples: x_t, uint8 ``(B, C, H, W)`` for each moment.
        predictions: The x_0 that the network predicts of it; None of a sampler that does not say.
    """

    timesteps: list[int]
    samples: list[Tensor]
    predictions: list[Tensor] | None

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Drawn:
    """Images of a request.

    Args:
        model: Whose they are.
        plan: How they were drawn.
        values: ``(N, C, H, W)``, in the model's own type and units.
        seconds: How long it took.
        way: How the first of them came about.
    """

    model: Model
    plan: Plan
    values: Tensor
    seconds: float
    way: Way

    @property
    def pictures(self) -> list[tuple[Image.Image, str]]:
        """Each image, enlarged, and what it is."""
        labels = [None] * len(self.values) if self.plan.labels is None else self.plan.labels.tolist()
        captions = [
            f"seed {seed}" if label is None else f"seed {seed}, class {label}"
            for seed, label in zip(self.plan.request.seeds, labels, strict=True)
        ]
        return list(zip(enlarged(self.model, self.values), captions, strict=True))

    def __str__(self) -> str:
        count, request = len(self.values), self.plan.request
        steps = f"{request.num_inference_steps} step{'' if request.num_inference_steps == 1 else 's'}"
        sampler = request.scheduler or type(self.plan.scheduler).__name__
        of_step = "" if self.model.step is None else f", weights of step {self.model.step:,}"
        return f"{count} image{'' if count == 1 else 's'} in {self.seconds:.2f} s ({sampler}, {steps}{of_step})"


def draw(model: Model, request: Request, on_step: OnStep | None = None) -> Drawn:
    """Draw the images of some seeds, and keep how they came about.

    Raises:
        ValueError: the model cannot draw that, in the sentence of ddpm-hf-sample.
    """
    expected = f"at least 1, and at most {MOST_IMAGES} on this page (ddpm-hf-sample draws any number)"
    check(request.num_images <= MOST_IMAGES, "num_images", request.num_images, expected)
    pipe, plan = model.planned(request)
    steps = len(plan.scheduler.timesteps)
    seeds, unet = request.seeds, model.pipe.unet
    shape = (min(IN_FRAMES, len(seeds)), *model.shape)
    frames = min(steps + 1, MOST_FRAMES, max(FEWEST_FRAMES, MOST_BYTES // (2 * math.prod(shape))))
    kept = set(torch.linspace(-1, steps - 1, frames).round().int().tolist())
    noise = randn_tensor(shape, generator=generators_of(seeds[:IN_FRAMES]), device=unet.device, dtype=unet.dtype)
    ts, samples, predictions = [int(plan.scheduler.timesteps[0])], [to_uint8(noise).cpu()], list[Tensor]()

    def remember(_: Any, i: int, t: Any, found: dict[str, Any]) -> None:
        if on_step is not None:
            on_step(i + 1, steps)
        x_0 = found["pred_original_sample"]
        if i - 1 in kept and x_0 is not None:  # predicted from the x_t that was kept
            predictions.append(to_uint8(x_0[:IN_FRAMES]).cpu())
        if i in kept:
            following = plan.scheduler.timesteps[i + 1 :]
            ts.append(int(following[0]) if len(following) else 0)
            x_s = found["sample"][:IN_FRAMES]
            samples.append(to_uint8(_as_unit(x_s, plan.scheduler) if len(following) else x_s).cpu())

    began = time.perf_counter()
    values: Tensor = pipe(
        seeds=seeds,
        num_inference_steps=request.num_inference_steps,
        eta=request.eta,
        class_labels=plan.labels,
        guidance_scale=request.guidance_scale,
        output_type="values",
        return_dict=False,
        callback_on_step_end=remember,
    )[0].cpu()
    seconds = time.perf_counter() - began
    way = Way(ts, samples, [*predictions, samples[-1]] if predictions else None)
    return Drawn(model, plan, values, seconds, way)


def _as_unit(x: Tensor, scheduler: Any) -> Tensor:
    """x_t in about the range of images, of a sampler whose noise grows beyond it."""
    return x / x.square().mean().sqrt().clamp(min=1) if float(scheduler.init_noise_sigma) > 1 else x


def frame(model: Model, images: Tensor) -> Image.Image:
    """Images of 8 bits at one moment of their way, ``(B, C, H, W)``, side by side."""
    return image_grid(as_pictures(images, model.display_of_steps), scale=model.scale)


def enlarged(model: Model, values: Tensor) -> list[Image.Image]:
    """Images ``(N, C, H, W)`` of a model to be looked at: 8 bits, small ones with pixels that can be seen."""
    pictures = to_pil(as_pictures(values, model.display))
    return [
        picture.resize((picture.width * model.scale, picture.height * model.scale), Image.Resampling.NEAREST)
        for picture in pictures
    ]


def between(
    model: Model, request: Request, last_seed: int, columns: int, on_step: OnStep | None = None
) -> list[tuple[Image.Image, str]]:
    """The images on the way from the noise of one seed to that of another, along the great circle between the two.

    Args:
        model: Who draws.
        request: How; its seed is the first one, and its class that of all.
        last_seed: The seed at the other end.
        columns: How many images, both ends included.
        on_step: Is told of each step.

    Raises:
        ValueError: the sampler adds noise on the way, or something else is not right, in one sentence.
    """
    check(2 <= columns <= MOST_IMAGES, "the number of images", columns, f"from 2 to {MOST_IMAGES}")
    check_seed("the last seed", last_seed)
    pipe, plan = model.planned(request)
    shares, steps = torch.linspace(0, 1, columns), len(plan.scheduler.timesteps)
    label = None if plan.labels is None else plan.labels[0].to(pipe.device)
    ends = request.seed, last_seed

    def told(i: int, *_: Any) -> None:
        if on_step is not None:
            on_step(i + 1, steps)

    x_0 = walk(model.pipe.unet, plan.scheduler, shares, ends, plan.options, label, told)
    pictures = enlarged(model, model.pipe.format.from_model(x_0).cpu())
    captions = [f"seed {ends[0]}", *(f"{share:.0%}" for share in shares[1:-1]), f"seed {ends[1]}"]
    return list(zip(pictures, captions, strict=True))


def repaint(
    model: Model,
    image: Tensor,
    mask: Tensor,
    request: Request,
    num_resamplings: int,
    on_step: OnStep | None = None,
) -> Image.Image:
    """Paint a part of an image anew so that it fits the rest, by RePaint (`ddpm_hf.pipelines.repaint`).

    Args:
        model: Who paints.
        image: ``(C, H, W)`` in [-1, 1].
        mask: bool ``(H, W)``; True is painted.
        request: Its seed, its number of steps, its spacing of them and its class are used.
        num_resamplings: How often each stretch of ten steps is gone through.
        on_step: Is told of each step.

    Raises:
        ValueError: nothing is to be painted, or something else is not right, in one sentence.
    """
    if not mask.any():
        raise ValueError("nothing is marked; paint over what is to be drawn anew")
    check(1 <= num_resamplings <= 100, "the number of passes", num_resamplings, "from 1 to 100")
    _, plan = model.planned(request)
    label = None if plan.labels is None else plan.labels[:1].to(model.pipe.device)
    pipe = model.pipeline(_told(pipeline_class("repaint"), on_step), plan.scheduler)
    painted = pipe(
        image[None],
        mask,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        num_resamplings=num_resamplings,
        output_type="pt",
        class_labels=label,
    ).images
    return enlarged(model, model.pipe.format.from_model(painted * 2 - 1).cpu())[0]


def _told(kind: Any, on_step: OnStep | None) -> Any:
    """A pipeline's class whose progress bar is a function that is told of each step."""

    class Told(kind):  # type: ignore[misc]
        def progress_bar(self, iterable: Any = None, total: int | None = None) -> Iterable[Any]:
            for done, item in enumerate(iterable):
                if on_step is not None:
                    on_step(done, len(iterable))
                yield item

    return Told


def known_image(model: Model, picture: Image.Image) -> Tensor:
    """A picture of any size as one of the model's images, ``(C, H, W)`` in [-1, 1]: its middle, as in training.

    An image that was enlarged to be seen comes back as it was.
    """
    channels, height, width = model.shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    side = min(picture.width / width, picture.height / height)
    left, top = (picture.width - side * width) / 2, (picture.height - side * height) / 2
    box = (left, top, left + side * width, top + side * height)
    small = picture.resize((width, height), Image.Resampling.BOX, box=box)
    array = np.array(small).reshape(height, width, channels)
    return from_uint8(torch.from_numpy(array).permute(2, 0, 1)[None])[0]


def marked(model: Model, opacity: npt.NDArray[np.uint8]) -> Tensor:
    """The pixels of an image, bool ``(H, W)``, that a brush has covered.

    Args:
        model: Whose image it is.
        opacity: ``(H', W')`` of the brush's strokes on the picture, which may be larger; as in `known_image`.
    """
    _, height, width = model.shape
    strokes = Image.fromarray((opacity > 0).astype(np.uint8) * 255)
    side = min(strokes.width / width, strokes.height / height)
    left, top = (strokes.width - side * width) / 2, (strokes.height - side * height) / 2
    box = (left, top, left + side * width, top + side * height)
    small = np.array(strokes.resize((width, height), Image.Resampling.BOX, box=box))
    return torch.from_numpy(small >= COVERED * 255)
