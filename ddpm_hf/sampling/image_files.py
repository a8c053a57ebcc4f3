"""Generated images on disk, so that a killed run starts again with what is missing: PNG, npz or parquet."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from ddpm_hf.files import check_hashes, remove_temporaries, write_hashes, written_whole
from ddpm_hf.images import save_png, to_pil

FORMATS = ("png", "npz", "parquet")
IMAGES_PER_FOLDER = 1_000
ROWS_PER_FILE = 10_000

_BEGIN_OF_PNG = b"\x89PNG\r\n\x1a\n"


class PNGFolder:
    """Image of seed 123 in ``000000/000123.png``: a thousand to a sub-folder.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, seed: int) -> Path:
        """Path of the image of a seed."""
        return self.folder / f"{seed - seed % IMAGES_PER_FOLDER:06d}" / f"{seed:06d}.png"

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
                found[start:stop] = [not _is_whole(self.path(seed)) for seed in seeds[start:stop]]
            start = stop
        return found

    def write(self, seeds: Iterable[int], images: Tensor) -> None:
        """Save images, uint8 ``(B, C, H, W)``, of these seeds."""
        for seed, image in zip(seeds, to_pil(images), strict=True):
            save_png(image, self.path(seed))

    def finish(self, seeds: range, labels: Tensor | None) -> None:
        """Nothing is left to do."""


class OneFile(PNGFolder):
    """Images kept as PNGs in ``parts`` until all are there, then put together and removed.

    Args:
        folder: Where the parts and the result go.
        kind: ``npz``: ``samples.npz`` with ``arr_0`` uint8 ``(N, H, W, C)`` and, with classes, ``arr_1`` int64
            ``(N,)``, as ADM's evaluation reads it. ``parquet``: ``data/train-*.parquet`` with the columns image, seed
            and, with classes, label, as ``load_dataset`` reads a folder.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder / "parts")
        self._result = folder / ("samples.npz" if kind == "npz" else "data")

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
            write = self._write_npz if self._result.suffix == ".npz" else self._write_parquet
            with written_whole(self._result) as temporary:
                write(temporary, seeds, labels)
            write_hashes(self._result.parent, "samples.npz", "data/*.parquet")
        for seed in seeds:
            self.path(seed).unlink(missing_ok=True)
        for sub_folder in (*self.folder.glob("*/"), self.folder):
            if sub_folder.is_dir() and not any(sub_folder.iterdir()):
                sub_folder.rmdir()

    def _write_npz(self, path: Path, seeds: range, labels: Tensor | None) -> None:
        first = np.asarray(Image.open(self.path(seeds[0])))
        images = np.empty((len(seeds), *first.shape), np.uint8)
        for i, seed in enumerate(seeds):
            images[i] = np.asarray(Image.open(self.path(seed)))
        arrays = {"arr_0": images if images.ndim == 4 else images[..., None]}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _write_parquet(self, folder: Path, seeds: range, labels: Tensor | None) -> None:
        folder.mkdir()
        features = {"image": datasets.Image(), "seed": datasets.Value("int64")}
        if labels is not None:
            features["label"] = datasets.Value("int64")
        starts = range(0, len(seeds), ROWS_PER_FILE)
        for number, start in enumerate(starts):
            rows = seeds[start : start + ROWS_PER_FILE]
            columns = {
                "image": [{"bytes": self.path(seed).read_bytes(), "path": f"{seed:06d}.png"} for seed in rows],
                "seed": list(rows),
            }
            if labels is not None:
                columns["label"] = labels[start : start + ROWS_PER_FILE].tolist()
            table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            table.to_parquet(folder / f"train-{number:05d}-of-{len(starts):05d}.parquet")


def sample_files(folder: Path, kind: str) -> PNGFolder:
    """The files of one of `FORMATS` in a folder."""
    return PNGFolder(folder) if kind == "png" else OneFile(folder, kind)


def _is_whole(path: Path) -> bool:
    """Whether a PNG is there to its last bytes, each of its chunks with the right checksum."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    position = len(_BEGIN_OF_PNG)
    while content.startswith(_BEGIN_OF_PNG) and position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4])
        kind_and_data = content[position + 4 : position + 8 + length]
        checksum = content[position + 8 + length : position + 12 + length]
        if checksum != zlib.crc32(kind_and_data).to_bytes(4):
            return False
        position += 12 + length
        if kind_and_data == b"IEND":
            return position == len(content)
    return False
