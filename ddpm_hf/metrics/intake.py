"""How images of any type and number of channels go into a feature network, most of which want 8 bits and RGB."""

import json
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from ddpm_hf.images import check_channels
from ddpm_hf.metrics.extractors import Extractor
from ddpm_hf.pixels import EIGHT_BITS, PixelFormat


@dataclass(frozen=True)
class Intake:
    """What a feature network sees of images.

    Args:
        format: What the numbers of the images mean.
        channels: The channels that the network sees, from 0, in this order; None for all.
    """

    format: PixelFormat = EIGHT_BITS
    channels: tuple[int, ...] | None = None

    def __call__(self, images: Tensor, extractor: Extractor) -> Tensor:
        """Images ``(N, C, H, W)`` of the type of the format as the network takes them.

        Returns:
            float32 in [-1, 1] for a network that takes any values. For all others uint8, to which the range of the
            format is scaled.
        """
        seen = images
        if extractor.takes_any_values:
            seen = self.format.to_model(images)
        elif not self.format.is_plain:
            seen = EIGHT_BITS.from_model(self.format.to_model(images))
        return seen if self.channels is None else seen[:, list(self.channels)]

    def check(self, extractor: Extractor, num_channels: int) -> None:
        """Refuse images that a network cannot see.

        Args:
            extractor: The network.
            num_channels: How many channels the images have.

        Raises:
            ValueError: in one sentence that names extractor_channels, and what can be used.
        """
        seen = num_channels
        if self.channels is not None:
            check_channels("extractor_channels", self.channels, num_channels)
            seen = len(self.channels)
        if extractor.channels is not None and seen not in extractor.channels:
            takes = " or ".join(map(str, extractor.channels))
            named = "; name them in extractor_channels, such as [2,1,0]," if num_channels > 1 else ";"
            raise ValueError(
                f"the extractor {extractor.name} takes images of {takes} channel(s) and would be given {seen} of "
                f"{num_channels}{named} or take the extractor pixels or a TorchScript file of yours, which see all"
            )

    def notes(self, extractor: Extractor, num_channels: int) -> list[str]:
        """What a reader of the scores must know of what the network saw."""
        found = []
        if self.channels is not None:
            found.append(f"the features see the channels {list(self.channels)} of {num_channels}")
        if not self.format.is_plain and not extractor.takes_any_values:
            low, high = (ends[0] if len(ends) == 1 else list(ends) for ends in (self.format.low, self.format.high))
            found.append(
                f"the features see the {self.format.dtype} values {low} to {high} as 8 bits, rounded and clipped"
            )
        return found

    @property
    def key(self) -> str:
        """Changes with what the network sees of the same images; empty for 8-bit images as they are."""
        if self == AS_THEY_ARE:
            return ""
        return json.dumps({"format": self.format.to_dict(), "channels": self.channels}, sort_keys=True)


AS_THEY_ARE: Final = Intake()
"""8-bit images with all their channels."""
