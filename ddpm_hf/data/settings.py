"""The settings of a data set: which images, and what is done to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddpm_hf.settings import check


@dataclass(frozen=True)
class DataConfig:
    """The images to train on.

    Args:
        name: "digits" (the embedded 8x8 digits), a parquet file, a folder of images, or the id of a Hub data set.
        config: The configuration of a data set that has several.
        split: The part of the data set to train on, such as "train" or "train[:1000]".
        revision: Branch, tag or commit of a Hub data set.
        image_column: The column of images; null for the only one of that type.
        label_column: The column of class labels, 0 or more; null for the only one of that type, if there is one.
        channels: 1 makes the images grey and 3 coloured; null keeps what the first image has.
        center_crop: Cut a square out of the middle first: an integer is its side, true the largest one.
        resolution: Side of the square that images are then resized to; null keeps their size.
        resize_filter: How images are resized; all of these look at every pixel when they shrink an image.
        random_flip: Mirror each image left to right with probability 1/2.
        on_corrupt: What images that cannot be decoded do: stop the run with their names, or be left out and counted. In
            a stream one that is left out is replaced by the next of its batch.
        cache_dir: Where decoded images are kept between runs; null for the Hugging Face cache.
        streaming: Read the images anew in each run and keep none, for sets that do not fit on the disk.
        shuffle_buffer: Images among which a streamed set is shuffled, held encoded in the memory of every process.
    """

    name: str = "digits"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    channels: Literal[1, 3] | None = None
    center_crop: bool | int = False
    resolution: int | None = None
    resize_filter: Literal["lanczos", "bicubic", "bilinear", "box", "hamming"] = "lanczos"
    random_flip: bool = False
    on_corrupt: Literal["error", "skip"] = "error"
    cache_dir: Path | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000

    def __post_init__(self) -> None:
        check(self.resolution is None or self.resolution >= 1, "data.resolution", self.resolution, "at least 1")
        check(self.center_crop >= 0, "data.center_crop", self.center_crop, "true, false or a number of pixels")
        check(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
