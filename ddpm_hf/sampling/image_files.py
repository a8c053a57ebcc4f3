"""Generated images on disk, so that a killed run starts again with what is missing: PNG, npz or parquet."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor

from ddpm_hf.files import check_hashes, is_temporary, remove_temporaries, write_hashes, written_whole
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


def load_images(source: Path) -> Tensor:
    """Images as this program or another one has left them, uint8 ``(N, C, H, W)``.

    Args:
        source: A folder of PNG or JPEG files, at any depth, in the order of their paths; an ``.npz`` of ADM's layout; a
            ``.parquet`` file or a folder of them with a column ``image``; or a folder that `sample_files` wrote.

    Raises:
        ValueError: there are none, they cannot be read, or they differ in size or colour.
    """
    if source.is_dir():
        check_hashes(source)
        if (source / "samples.npz").exists():
            return load_images(source / "samples.npz")
        tables = sorted(path for path in source.rglob("*.parquet") if not is_temporary(path.relative_to(source)))
        if tables:
            return _stack([row for path in tables for row in _rows(path)], source)
        files = (path for ending in ("png", "jpg", "jpeg") for path in source.rglob(f"*.{ending}"))
        return _stack([(str(path), path) for path in sorted(files) if not path.name.startswith(".")], source)
    if source.suffix == ".npz" and source.exists():
        try:
            with np.load(source, allow_pickle=False) as file:
                images = file["arr_0"]
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{source} has no array arr_0 of images as ADM's files have ({error})") from error
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"arr_0 of {source} is {images.dtype} of shape {images.shape} and must be uint8 (N, H, W, C), 0 to 255"
            )
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    if source.suffix == ".parquet" and source.exists():
        return _stack(_rows(source), source)
    raise ValueError(f"{source} is no folder of images, .npz or .parquet file")


def _rows(path: Path) -> list[tuple[str, io.BytesIO]]:
    """The images of a parquet file, encoded, each with its place for messages."""
    try:
        column = pyarrow.parquet.read_table(path, columns=["image"]).column("image")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as parquet with a column 'image': {error}") from error
    return [(f"{path}, row {i}", io.BytesIO(row["bytes"].as_py())) for i, row in enumerate(column)]


def _stack(pictures: Sequence[tuple[str, Path | io.BytesIO]], source: Path) -> Tensor:
    images: Tensor | None = None
    for i, (name, file) in enumerate(pictures):
        try:
            with Image.open(file) as picture:
                pixels = np.array(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{name} cannot be read as an image: {error}") from error
        image = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
        if images is None:
            images = torch.empty(len(pictures), *image.shape, dtype=torch.uint8)
        elif image.shape != images.shape[1:]:
            raise ValueError(
                f"{name} is {_size(image)} and the first image of {source} is {_size(images[0])}; all must have one "
                "size and colour"
            )
        images[i] = image
    if images is None:
        raise ValueError(f"{source} holds no PNG, JPEG, npz or parquet images")
    return images


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


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
