"""What the numbers of images mean: their type, and the values that the network sees as -1 and 1."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

import torch
from torch import Tensor

DType = Literal["uint8", "uint16", "float16", "float32"]

TORCH: Final = {"uint8": torch.uint8, "uint16": torch.uint16, "float16": torch.float16, "float32": torch.float32}
"""The types that pixels are kept in."""

LARGEST: Final = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True)
class PixelFormat:
    """The type of pixels and the range that goes to [-1, 1] and back: x = 2 (v - low) / (high - low) - 1.

    Args:
        dtype: type of the values.
        low: values that become -1: one for all channels, or one for each.
        high: values that become 1, above those of `low`; as many.
        alpha: whether the last channel is opacity.

    Raises:
        ValueError: the type is not known, or the values are no range of it.

    Examples:
        >>> depth = PixelFormat("float32", low=(0,), high=(100,))
        >>> depth.to_model(torch.tensor([[[[0.0, 25.0, 100.0]]]])).tolist()
        [[[[-1.0, -0.5, 1.0]]]]
    """

    dtype: str = "uint8"
    low: tuple[float, ...] = (0,)
    high: tuple[float, ...] = (255,)
    alpha: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in TORCH:
            raise ValueError(f"pixels of the type {self.dtype!r} are not known; expected one of {', '.join(TORCH)}")
        is_range = len(self.low) == len(self.high) > 0 and all(a < b for a, b in zip(self.low, self.high, strict=True))
        finite = all(abs(value) < float("inf") for value in (*self.low, *self.high))
        if not (is_range and finite):
            raise ValueError(f"{list(self.low)} to {list(self.high)} is no range of values; each low is below its high")

    @classmethod
    def whole(cls, dtype: str) -> "PixelFormat":
        """All the values of an integer type."""
        return cls(dtype, (0,), (LARGEST[dtype],))

    @classmethod
    def from_dict(cls, found: Mapping[str, Any] | None) -> "PixelFormat":
        """As `to_dict` made it; of None, 8 bits."""
        return (
            cls()
            if found is None
            else cls(found["dtype"], tuple(found["low"]), tuple(found["high"]), bool(found.get("alpha")))
        )

    def to_dict(self) -> dict[str, Any] | None:
        """In the types of JSON; None for the format of all pictures, 8 bits."""
        plain = asdict(self)
        return None if self == EIGHT_BITS else {**plain, "low": list(self.low), "high": list(self.high)}

    def to_model(self, values: Tensor) -> Tensor:
        """Values (B, C, H, W) of the type to float32 in [-1, 1]; those beyond the range are clipped."""
        if self == EIGHT_BITS:
            return values.float() / 127.5 - 1
        low, half = _columns(self, values.device)
        return ((values.float() - low) / half - 1).clamp(-1, 1)

    def from_model(self, images: Tensor) -> Tensor:
        """[-1, 1], floating (B, C, H, W), clipped, to values of the type; whole numbers are rounded to the nearest."""
        if self == EIGHT_BITS:  # the same, in the form whose rounding all earlier images have
            return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        low, half = _columns(self, images.device)
        values = (images.float().clamp(-1, 1) + 1) * half + low
        if self.dtype in LARGEST:
            values = values.round().clamp(0, LARGEST[self.dtype])
        return values.to(TORCH[self.dtype])

    @property
    def is_plain(self) -> bool:
        """Whether the numbers are those of pictures of 8 bits, with opacity or without."""
        return replace(self, alpha=False) == EIGHT_BITS

    @property
    def half_bin(self) -> tuple[float, ...]:
        """Half the distance of two neighbouring values in [-1, 1], one or for each channel.

        Raises:
            ValueError: the values are continuous, or the range does not begin and end at whole ones.
        """
        if self.dtype not in LARGEST:
            raise ValueError(
                f"the images are {self.dtype}, and bits are defined for whole numbers (uint8, uint16): continuous "
                "values need infinitely many"
            )
        if not all(float(value).is_integer() for value in (*self.low, *self.high)):
            raise ValueError(
                f"the range of values is {list(self.low)} to {list(self.high)}, and bits are defined where it begins "
                "and ends at whole numbers"
            )
        return tuple(1 / (high - low) for low, high in zip(self.low, self.high, strict=True))


@lru_cache(maxsize=16)  # each step asks, and a copy to a device would wait for it
def _columns(pixels: PixelFormat, device: torch.device) -> tuple[Tensor, Tensor]:
    """The low end and half of the range, (1 or C, 1, 1)."""
    low, high = (torch.tensor(ends, device=device)[:, None, None].float() for ends in (pixels.low, pixels.high))
    return low, (high - low) / 2


EIGHT_BITS: Final = PixelFormat()
"""The format of all pictures."""
