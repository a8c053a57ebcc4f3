"""The settings of a data set: which images to load, and how to transform them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddpm_hf.settings import check


@dataclass(frozen=True)
class DataConfig:
    """The images to train on.

    Args:
        name: "digits" (the embedded 8x8 digits), a parquet file, a folder of images or of save_to_disk, or the id of a
            Hub data set.
        config: Configuration of the data set, if it has several.
        split: The part of the data set to train on, such as "train" or "train[:1000]".
        revision: Branch, tag or commit of a Hub data set.
        image_column: Column of images, of their bytes or paths, or of arrays; null chooses the only one of such a type.
        label_column: Column of class labels, 0 or more, or text; null chooses the only one of the type ClassLabel, if
            there is one.
        channels: Convert images to 1 (grey) or 3 (RGB) channels; null keeps the number of the first image.
        center_crop: First cut a square out of the middle: an integer is its side in pixels, true takes the largest.
        resolution: Then resize images to a square of this side; null keeps their size.
        resize_filter: Filter for resizing; all of them antialias.
        random_flip: Mirror each image left to right with probability 1/2.
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
        check(bool(self.name.strip()), "data.name", repr(self.name), "a file, a folder or the id of a Hub data set")
        check(self.resolution is None or self.resolution >= 1, "data.resolution", self.resolution, "at least 1")
        check(self.center_crop >= 0, "data.center_crop", self.center_crop, "true, false or a number of pixels")
        check(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        is_file = self.name == "digits" or self.name.endswith(".parquet")
        for setting, is_here in (("config", is_file), ("revision", is_file or Path(self.name).exists())):
            expected = f"null, as {self.name} is on this machine and has none"
            check(getattr(self, setting) is None or not is_here, f"data.{setting}", getattr(self, setting), expected)
