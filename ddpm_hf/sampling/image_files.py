"""Generated images on disk, so that a killed run starts again with what is missing.

`one_image.py` knows the files of a single image; here they are laid out in folders, or put together in one file.
"""

from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
from torch import Tensor

from ddpm_hf.files import check_hashes, remove_temporaries, write_hashes, written_whole
from ddpm_hf.pixels import PixelFormat
from ddpm_hf.sampling.one_image import KINDS, FileKind, kind_for_parts

FORMATS = ("png", "tiff", "npy", "npz", "parquet")
IMAGES_PER_FOLDER = 1_000
ROWS_PER_FILE = 10_000


class ImageFolder:
    """Image of seed 123 in ``000000/000123.png``: a thousand to a sub-folder.

    Args:
        folder: Where they go.
        kind: How one image is written and read.
    """

    def __init__(self, folder: Path, kind: FileKind) -> None:
        self.folder, self.kind = folder, kind

    def path(self, seed: int) -> Path:
        """Path of the image of a seed."""
        return self.folder / f"{seed - seed % IMAGES_PER_FOLDER:06d}" / f"{seed:06d}{self.kind.ending}"

    def remove_temporaries(self) -> None:
        """Remove what a killed process left half written. No process may be writing."""
        remove_temporaries(self.folder, *self.folder.glob("*/"))

    def missing(self, seeds: range) -> npt.NDArray[np.bool_]:
        """Of each seed, bool ``(N,)``, whether its image is not there whole."""
        found = np.ones(len(seeds), dtype=bool)
        start = 0
        while start < len(seeds):  # a sub-folder at a time, as most may not be there
            stop = min(len(seeds), start + IMAGES_PER_FOLDER - seeds[start] % IMAGES_PER_FOLDER)
            if self.path(seeds[start]).parent.is_dir():
                found[start:stop] = [not self.kind.is_whole(self.path(seed)) for seed in seeds[start:stop]]
            start = stop
        return found

    def write(self, seeds: Iterable[int], images: Tensor) -> None:
        """Save images, ``(B, C, H, W)`` of their own type, of these seeds."""
        for seed, image in zip(seeds, images.permute(0, 2, 3, 1).contiguous().numpy(), strict=True):
            with written_whole(self.path(seed), shared=True) as temporary:
                self.kind.write(temporary, image)

    def finish(self, seeds: range, labels: Tensor | None) -> None:
        """Nothing is left to do."""


class OneFile(ImageFolder):
    """Images kept one by one in ``parts`` until all are there, then put together and removed.

    Args:
        folder: Where the parts and the result go.
        format: ``npz``: ``samples.npz`` with ``arr_0`` ``(N, H, W, C)`` and, with classes, ``arr_1`` int64 ``(N,)``, as
            ADM's evaluation reads it. ``npy``: the same array as ``samples.npy`` and ``labels.npy``. ``parquet``:
            ``data/train-*.parquet`` with the columns image, seed and, with classes, label, as ``load_dataset`` reads a
            folder.
        kind: How one image is written and read.
    """

    def __init__(self, folder: Path, format: str, kind: FileKind) -> None:
        super().__init__(folder / "parts", kind)
        self._result = folder / ("data" if format == "parquet" else f"samples.{format}")

    def missing(self, seeds: range) -> npt.NDArray[np.bool_]:
        """None once the result is there.

        Raises:
            ValueError: it is damaged.
        """
        if not self._result.exists():
            return super().missing(seeds)
        check_hashes(self._result.parent)
        return np.zeros(len(seeds), dtype=bool)

    def finish(self, seeds: range, labels: Tensor | None) -> None:
        """Put the parts together, and remove them."""
        if not self._result.exists():
            if self._result.suffix == ".npy" and labels is not None:  # first, as the result says that all is there
                with written_whole(self._result.with_name("labels.npy")) as temporary, temporary.open("wb") as file:
                    np.save(file, labels.numpy(), allow_pickle=False)
            write = {"": self._write_parquet, ".npz": self._write_npz, ".npy": self._write_npy}[self._result.suffix]
            with written_whole(self._result) as temporary:
                write(temporary, seeds, labels)
            write_hashes(self._result.parent, "samples.np?", "labels.npy", "data/*.parquet")
        for seed in seeds:
            self.path(seed).unlink(missing_ok=True)
        for sub_folder in (*self.folder.glob("*/"), self.folder):
            if sub_folder.is_dir() and not any(sub_folder.iterdir()):
                sub_folder.rmdir()

    def _write_npz(self, path: Path, seeds: range, labels: Tensor | None) -> None:
        first = self.kind.read(self.path(seeds[0]))
        images = np.empty((len(seeds), *first.shape), first.dtype)
        for i, seed in enumerate(seeds):
            images[i] = self.kind.read(self.path(seed))
        arrays = {"arr_0": images} if labels is None else {"arr_0": images, "arr_1": labels.numpy()}
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _write_npy(self, path: Path, seeds: range, labels: Tensor | None) -> None:
        first = self.kind.read(self.path(seeds[0]))
        images = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=(len(seeds), *first.shape))
        for i, seed in enumerate(seeds):
            images[i] = self.kind.read(self.path(seed))
        images.flush()

    def _write_parquet(self, folder: Path, seeds: range, labels: Tensor | None) -> None:
        folder.mkdir()
        features = {"image": datasets.Image(), "seed": datasets.Value("int64")}
        if labels is not None:
            features["label"] = datasets.Value("int64")
        starts = range(0, len(seeds), ROWS_PER_FILE)
        for number, start in enumerate(starts):
            rows = seeds[start : start + ROWS_PER_FILE]
            columns = {
                "image": [{"bytes": self.path(seed).read_bytes(), "path": self.path(seed).name} for seed in rows],
                "seed": list(rows),
            }
            if labels is not None:
                columns["label"] = labels[start : start + ROWS_PER_FILE].tolist()
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            table.to_parquet(folder / f"train-{number:05d}-of-{len(starts):05d}.parquet")


def sample_files(folder: Path, format: str, pixels: PixelFormat, channels: int) -> ImageFolder:
    """The files of one of `FORMATS` in a folder, for images of a type and number of channels.

    Raises:
        ValueError: files of this kind do not hold such images.
    """
    if format in KINDS:
        kind = KINDS[format]
        kind.check(pixels, channels)
        return ImageFolder(folder, kind)
    kind = KINDS["png"] if format == "parquet" else kind_for_parts(pixels, channels)
    kind.check(pixels, channels)
    return OneFile(folder, format, kind)
