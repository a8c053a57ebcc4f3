"""Random changes of the training images, as functions of (seed, step, sample). Nothing but training sees them.

Flips, quarter turns and crops tell the network that its images are as likely in each of these forms, so that it draws
all of them. The transforms of Karras et al. (2022, appendix F.2) do not show in what it draws: the network is told
which of them an image has gone through, in labels that are all zero for an image as it is. Samplers give it none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_hf.data.settings import DataConfig
from ddpm_hf.randomness import BLOCK, drawn_in_blocks, random_stream
from ddpm_hf.transfers import uploaded

Array = npt.NDArray[np.float64]

NUM_LABELS: Final = 9
"""What the network is told: flipped left to right, flipped top to bottom, scale, cosine - 1 and sine of the rotation,
strength of the stretching times cosine and sine of its axis, shift to the right, shift down. Scale, strength and shifts
are in standard deviations."""

SCALE_STD: Final = 0.2
"""Standard deviation of log2 of the scale, isotropic and anisotropic."""
SHIFT_STD: Final = 0.125
"""Standard deviation of a shift, as a part of the image's side."""

SYM6: Final = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466),
    *(0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578),
    *(0.0017677118642428036, -0.007800708325034148),
)
"""Low-pass filter of Daubechies' least asymmetric wavelet with six vanishing moments. It is orthogonal to itself
shifted by two, so that an image that is enlarged with it and made smaller again is the image itself."""
_DELAY: Final = sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6)
_MARGIN: Final = len(SYM6) // 4
"""Pixels beyond each border that the filter reaches."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to the training images at random, in this order.

    Args:
        flip: Mirror left to right with probability 1/2.
        flip_vertical: Mirror top to bottom with probability 1/2.
        rotation: Turn by 0, 90, 180 or 270 degrees, each as likely.
        probability: Probability of each transform of Karras et al. but the flip left to right, which has 1/2 whenever
            this is above 0, as in theirs.

    Examples:
        >>> augment = Augmentation(rotation=True, probability=0.12)
        >>> images, flips = torch.zeros(16, 3, 32, 32), torch.zeros(16, dtype=torch.bool)
        >>> images, labels = augment(images, flips, seed=0, step=0, start=0)
        >>> labels.shape
        torch.Size([16, 9])
    """

    flip: bool = False
    flip_vertical: bool = False
    rotation: bool = False
    probability: float = 0.0

    @classmethod
    def of(cls, config: DataConfig) -> "Augmentation":
        """What the settings say."""
        return cls(config.random_flip, config.random_flip_vertical, config.random_rotation, config.augment_probability)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """See that images ``(C, H, W)`` can be augmented so.

        Raises:
            ValueError: they are to be turned by quarters and are not square.
        """
        height, width = shape[1:]
        if self.rotation and height != width:
            raise ValueError(
                f"data.random_rotation turns images by quarters, and those of {name!r} are {height} x {width}, which "
                "would change their shape; take it out (data.random_flip and data.random_flip_vertical work), or make "
                "the images square"
            )

    def __call__(self, images: Tensor, flips: Tensor, seed: int, step: int, start: int) -> tuple[Tensor, Tensor | None]:
        """Samples ``start``, ``start + 1``, ... of the global batch of ``step``, augmented.

        Args:
            images: float32 ``(b, C, H, W)`` in [-1, 1].
            flips: bool ``(b,)``: which images ``flip`` mirrors.
            seed: That of the run.
            step: The step.
            start: The sample that the first image is.

        Returns:
            The images, as they came in shape and range; and their labels, float32 ``(b, NUM_LABELS)``, or None where
            ``probability`` is 0.
        """
        stop = start + len(images)
        if self.flip:
            images = _where(flips, images.flip(-1), images)
        if self.flip_vertical or self.rotation:
            symmetries = drawn_in_blocks(start, stop, lambda block: _draw_symmetries(seed, step, block))
            if self.flip_vertical:
                images = _where(symmetries[:, 0] == 1, images.flip(-2), images)
            for turns in (1, 2, 3) if self.rotation else ():
                images = _where(symmetries[:, 1] == turns, images.rot90(turns, (-2, -1)), images)
        if self.probability == 0:
            return images, None
        table = drawn_in_blocks(start, stop, lambda block: _draw_transforms(self.probability, seed, step, block))
        labels, maps = np.split(table, [NUM_LABELS], axis=1)
        told = uploaded(torch.from_numpy(labels).float(), images.device)
        return transformed(images, labels, maps.reshape(-1, 2, 3)), told


NO_AUGMENTATION: Final = Augmentation()


def transformed(images: Tensor, labels: Array, maps: Array) -> Tensor:
    """Images under the transforms of Karras et al.; one whose labels are all zero comes back bit for bit.

    Args:
        images: float32 ``(n, C, H, W)`` in [-1, 1].
        labels: ``(n, NUM_LABELS)``, of which the flips are read here.
        maps: ``(n, 2, 3)``, from :func:`inverse_maps`.

    Returns:
        float32 ``(n, C, H, W)`` in [-1, 1].
    """
    images = _where(labels[:, 0] == 1, images.flip(-1), images)
    images = _where(labels[:, 1] == 1, images.flip(-2), images)
    moved = np.flatnonzero(labels[:, 2:].any(axis=1))
    if len(moved):
        rows = uploaded(torch.from_numpy(moved), images.device)
        inverse = uploaded(torch.from_numpy(maps[moved]).float(), images.device)
        images = images.index_copy(0, rows, warped(images[rows], inverse))
    return images


def inverse_maps(scale: Array, angle: Array, stretch: Array, axis: Array, shift: Array) -> Array:
    """Where the pixels of a transformed image come from: that at q, from the centre, shows what was at A (q - b).

    An image is scaled by 2^(0.2 scale), turned counter-clockwise by ``angle``, stretched by 2^(0.2 stretch) along the
    direction ``axis`` and squeezed by as much across it, and moved by 0.125 ``shift`` of its side.

    Args:
        scale: ``(n,)``.
        angle: ``(n,)``, in radians.
        stretch: ``(n,)``.
        axis: ``(n,)``, in radians.
        shift: ``(n, 2)``: to the right and down.

    Returns:
        ``(n, 2, 3)``: A, and b as a part of the width and of the height.
    """
    ones = np.ones_like(scale)
    factor, along = np.exp2(SCALE_STD * scale), np.exp2(SCALE_STD * stretch)
    squeeze = _rotation(-axis) @ _diagonal(1 / along, along) @ _rotation(axis)
    matrix = _diagonal(ones / factor, ones / factor) @ _rotation(angle) @ squeeze
    return np.concatenate([matrix, SHIFT_STD * shift[:, :, None]], axis=2)


def warped(images: Tensor, inverse: Tensor) -> Tensor:
    """Images whose pixels are taken from where :func:`inverse_maps` says, with as little blur and aliasing as may be.

    As in Karras et al.: enlarged twice by a wavelet's filter, moved there by linear interpolation, and made smaller by
    the same filter. Beyond its border an image goes on as its mirror image. All sums are taken in one order, whatever
    the number of images, so that an image does not depend on the others.

    Args:
        images: float32 ``(n, C, H, W)`` in [-1, 1].
        inverse: float32 ``(n, 2, 3)``.

    Returns:
        float32 ``(n, C, H, W)``, clipped to [-1, 1].
    """
    height, width = images.shape[-2:]
    enlarged = _enlarge(_enlarge(images).transpose(-1, -2)).transpose(-1, -2)
    # Places of the larger result's pixels in units of the smaller one's, from the centre.
    x, y = (
        (torch.arange(2 * side + len(SYM6) - 2, device=images.device) - _DELAY) / 2 - (side - 1) / 2
        for side in (width, height)
    )
    x, y = x.view(1, 1, -1), y.view(1, -1, 1)
    (a, b, right), (c, d, down) = (row.unbind(1) for row in inverse[..., None, None].unbind(1))
    x, y = x - right * width, y - down * height
    grid = torch.stack(
        [_place(a * x + b * y + (width - 1) / 2, width), _place(c * x + d * y + (height - 1) / 2, height)], dim=-1
    )
    moved = F.grid_sample(enlarged, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return _reduce(_reduce(moved).transpose(-1, -2)).transpose(-1, -2).clamp(-1, 1)


def random_windows(images: Iterable[Tensor], size: tuple[int, int], seed: int, step: int, samples: range) -> Tensor:
    """A random window of each image, each place as likely.

    Args:
        images: ``(C, H, W)`` each, of any type; as many as ``samples``.
        size: Height and width of a window.
        seed: That of the run.
        step: The step.
        samples: The images' numbers in the step's global batch, one after the other.

    Returns:
        ``(len(samples), C, *size)``.
    """
    draws = drawn_in_blocks(
        samples.start, samples.stop, lambda block: random_stream("crop", seed, step, block).random((BLOCK, 2))
    )
    cut = []
    for image, draw in zip(images, draws, strict=True):
        room = np.subtract(image.shape[-2:], size) + 1
        top, left = (draw * room).astype(int).tolist()
        cut.append(image[:, top : top + size[0], left : left + size[1]])
    return torch.stack(cut)


def middles(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of each image ``(..., H, W)``, in the same memory."""
    top, left = ((larger - side) // 2 for larger, side in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def check_crop(name: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """See that windows can be cut from images ``(C, H, W)``.

    Raises:
        ValueError: they are as large as the images, or larger.
    """
    height, width = shape[-2:]
    if size[0] > height or size[1] > width or size == (height, width):
        raise ValueError(
            f"data.random_crop is {size[0]} x {size[1]}, and the images of {name!r} are {height} x {width}, so there "
            "is nothing to crop; give a smaller one, or a larger data.resolution"
        )


def _draw_symmetries(seed: int, step: int, block: int) -> npt.NDArray[np.int64]:
    """Upside down or not, and quarter turns, ``(BLOCK, 2)``."""
    return random_stream("symmetries", seed, step, block).integers([2, 4], size=(BLOCK, 2))


def _draw_transforms(probability: float, seed: int, step: int, block: int) -> Array:
    """Labels and inverse maps, ``(BLOCK, NUM_LABELS + 6)``; all numbers are drawn, whatever of them is used."""
    stream = random_stream("augmentation", seed, step, block)
    flips = stream.integers(2, size=(BLOCK, 2))
    scale, stretch, *shift = stream.standard_normal((4, BLOCK))
    angle, axis = stream.uniform(-np.pi, np.pi, (2, BLOCK))
    is_drawn = stream.random((5, BLOCK)) < probability
    is_slanted = stream.random(BLOCK) < 0.5

    down, scale, angle, stretch = is_drawn[:4] * [flips[:, 1], scale, angle, stretch]
    axis, shift = is_slanted * axis, (is_drawn[4] * shift).T
    rotation = [np.cos(angle) - 1, np.sin(angle)]
    stretching = [stretch * np.cos(axis), stretch * np.sin(axis)]
    maps = inverse_maps(scale, angle, stretch, axis, shift).reshape(BLOCK, 6)
    return np.column_stack([flips[:, 0], down, scale, *rotation, *stretching, shift, maps])


def _where(chosen: Any, images: Tensor, others: Tensor) -> Tensor:
    """Those of the first images that are chosen, bool ``(n,)``, and the others of the second."""
    return torch.where(uploaded(torch.as_tensor(chosen), images.device).view(-1, 1, 1, 1), images, others)


def _rotation(angle: Array) -> Array:
    """``(n, 2, 2)``, for x to the right and y down: clockwise as one sees it."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cosine, -sine], axis=1), np.stack([sine, cosine], axis=1)], axis=1)


def _diagonal(x: Array, y: Array) -> Array:
    """``(n, 2, 2)``."""
    zero = np.zeros_like(x)
    return np.stack([np.stack([x, zero], axis=1), np.stack([zero, y], axis=1)], axis=1)


def _mirrored(place: Tensor, side: int) -> Tensor:
    """Places anywhere on a line, to those within 0 .. side - 1 that they are a mirror image of."""
    if side == 1:
        return torch.zeros_like(place)
    return (torch.remainder(place + (side - 1), 2 * (side - 1)) - (side - 1)).abs()


def _place(place: Tensor, side: int) -> Tensor:
    """Places in an image's own pixels to those of ``grid_sample`` in what :func:`_enlarge` makes of it."""
    is_inside = (place >= -_MARGIN) & (place <= side - 1 + _MARGIN)
    index = 2 * torch.where(is_inside, place, _mirrored(place, side)) + (2 + _DELAY)
    return 2 * index / (2 * side + 13) - 1


def _enlarge(images: Tensor) -> Tensor:
    """Twice as wide, with seven pixels more at each side: ``(..., W)`` to ``(..., 2 W + 14)``.

    Pixel x is at 2 x + 2 + _DELAY.
    """
    side = images.shape[-1]
    around = torch.arange(-2 * _MARGIN, side + 2 * _MARGIN, device=images.device)
    padded = images[..., _mirrored(around, side)]
    halves = [sum(tap * padded[..., 5 - i : 12 - i + side] for i, tap in enumerate(SYM6[phase::2])) for phase in (0, 1)]
    return torch.stack(halves, dim=-1).flatten(-2)  # type: ignore[arg-type]  # sums of tensors


def _reduce(images: Tensor) -> Tensor:
    """The adjoint: ``(..., 2 W + 10)`` to ``(..., W)``."""
    side = (images.shape[-1] - len(SYM6) + 2) // 2
    return sum(tap * images[..., i : i + 2 * side - 1 : 2] for i, tap in enumerate(SYM6))  # type: ignore[return-value]
