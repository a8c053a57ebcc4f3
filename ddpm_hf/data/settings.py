"""The settings of a data set: which images to load, and how to transform them."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from ddpm_hf.settings import check

Alpha = Literal["composite", "channel", "drop"]


@dataclass(frozen=True)
class DataConfig:
    """The images to train on.

    Args:
        name: "digits" (the embedded 8x8 digits), a folder of images, a zip or tar of them, parquet, .npy, .npz, a TIFF
            of several pages, what save_to_disk left, or the id of a Hub data set.
        config: Configuration of the data set, if it has several.
        split: The part of the data set to train on, such as "train" or "train[:1000]".
        revision: Branch, tag or commit of a Hub data set.
        image_column: Column of images, of their bytes or paths, or of arrays; null chooses the only one of such a type.
        label_column: Column of class labels, 0 or more, or text; null chooses the only one of the type ClassLabel, if
            there is one.
        layout: Axes of one image in arrays of numbers, height H, width W and channels C; null takes (H, W, C) where the
            last of three is 1, 3 or smaller than both others, and else (C, H, W) where the first one is.
        channels: Number of channels; 1 (grey) and 3 (RGB) become each other, all others must be there. null keeps the
            number of the first image.
        alpha: What becomes of transparency: composite lays images on the background, channel keeps opacity as the last
            channel, drop forgets it and shows the colours below.
        background: Name or #rrggbb of the colour that images with transparency are laid on.
        dtype: uint8 rounds images of 16 bits to 8, uint16 takes those of 8 for 16; null keeps the type of the first
            image: 8 or 16 bits, or 16 or 32 in floating point.
        value_range: Values that become -1 and 1: two numbers; or percentile, for the 0.1 and 99.9 % of the values in
            each channel. Values beyond are clipped. null takes all values of whole numbers, and floating point has no
            such range.
        center_crop: First cut a part out of the middle: an integer is the side of a square in pixels, true takes the
            largest part of the shape of data.resolution, false none, and null takes true where there is a resolution.
        resolution: Then resize images to a square of this side, or to [height, width]; null keeps their size.
        resize_filter: Filter for resizing; all of them antialias.
        random_crop: Train on random windows of this size, cut out of each image as it comes out of the settings above,
            anew in each step: the side of a square, or [height, width]. Everything but training sees the middle of each
            image. null: none.
        random_flip: Mirror each image left to right with probability 1/2.
        random_flip_vertical: Mirror each image top to bottom with probability 1/2.
        random_rotation: Turn each image by 0, 90, 180 or 270 degrees, each as likely.
        augment_probability: Probability of each transform of Karras et al.'s augmentation (2022, appendix F.2): flips,
            scaling, rotation, stretching and shifting. The network is told of them and does not draw images like that.
            It helps where images are few; theirs is 0.12 to 0.15. 0: none.
        on_corrupt: What to do about images that cannot be decoded: error stops and names them, skip leaves them out and
            counts them. In a stream, a skipped image is replaced by the next one of its batch.
        cache_dir: Folder where decoded images are kept between runs; null for the Hugging Face cache.
        streaming: Read the images again in each run and store none, for data sets that do not fit on the disk.
        shuffle_buffer: Size of the buffer that shuffles a streamed data set; each process holds its images, encoded.
    """

    name: str = "digits"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    layout: Literal["HW", "HWC", "CHW"] | None = None
    channels: int | None = None
    alpha: Alpha = "composite"
    background: str = "white"
    dtype: Literal["uint8", "uint16"] | None = None
    value_range: Literal["percentile"] | tuple[float, float] | None = None
    center_crop: bool | int | None = None
    resolution: int | tuple[int, int] | None = None
    resize_filter: Literal["lanczos", "bicubic", "bilinear", "box", "hamming"] = "lanczos"
    random_crop: int | tuple[int, int] | None = None
    random_flip: bool = False
    random_flip_vertical: bool = False
    random_rotation: bool = False
    augment_probability: float = 0.0
    on_corrupt: Literal["error", "skip"] = "error"
    cache_dir: Path | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000

    def __post_init__(self) -> None:
        check(bool(self.name.strip()), "data.name", repr(self.name), "a file, a folder or the id of a Hub data set")
        check(self.channels is None or self.channels >= 1, "data.channels", self.channels, "at least 1")
        sides = self.resolution if isinstance(self.resolution, tuple) else (self.resolution or 1,)
        is_size = self.resolution is None or (self.resolution != 0 and min(sides) >= 1)
        check(is_size, "data.resolution", self.resolution, "at least 1, or [height, width]")
        expected = "true, false, null or a number of pixels"
        check(self.center_crop is None or self.center_crop >= 0, "data.center_crop", self.center_crop, expected)
        is_square = not isinstance(self.resolution, tuple) or self.resolution[0] == self.resolution[1]
        is_side = not isinstance(self.center_crop, bool) and bool(self.center_crop)
        expected = f"true or null: a square does not have the shape of data.resolution {self.resolution}"
        check(is_square or not is_side, "data.center_crop", self.center_crop, expected)
        if self.background != "white":
            from PIL import ImageColor  # only now, so that a command whose settings are wrong answers at once

            try:
                ImageColor.getrgb(self.background)
            except ValueError:
                check(False, "data.background", repr(self.background), "a colour, such as white, black or #8080ff")
        if isinstance(self.value_range, tuple):
            low, high = self.value_range
            expected = "two finite numbers, the lower one first"
            check(-inf < low < high < inf, "data.value_range", list(self.value_range), expected)
        expected = "null or two numbers: percentiles are of all the images, and data.streaming keeps none at hand"
        is_measured = self.value_range == "percentile" and self.streaming
        check(not is_measured, "data.value_range", self.value_range, expected)
        crop = (self.random_crop,) if isinstance(self.random_crop, int) else (self.random_crop or (1,))
        expected = "a side of at least 1, or [height, width]"
        check(min(crop) >= 1, "data.random_crop", self.random_crop, expected)
        probability = self.augment_probability
        check(0 <= probability <= 1, "data.augment_probability", probability, "from 0 to 1")
        check(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        is_file = self.name == "digits" or self.name.endswith(".parquet") or Path(self.name).is_file()
        for setting, is_here in (("config", is_file), ("revision", is_file or Path(self.name).exists())):
            expected = f"null, as {self.name} is on this machine and has none"
            check(getattr(self, setting) is None or not is_here, f"data.{setting}", getattr(self, setting), expected)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; None where they keep their own."""
        return size_of(self.resolution)

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Height and width of the random windows that are trained on; None where there are none."""
        return size_of(self.random_crop)


def size_of(sides: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width, of the side of a square or of both."""
    return (sides, sides) if isinstance(sides, int) else sides
