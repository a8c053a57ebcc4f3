"""Generated images to be scored, from this program or another, read as training images are."""

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from ddpm_hf.data.columns import rows_of
from ddpm_hf.data.folders import FolderOfImages, list_folder, state_of
from ddpm_hf.data.image_cache import decoded, sentence_of
from ddpm_hf.data.loading import Loaded
from ddpm_hf.data.members import Members
from ddpm_hf.data.rows import settle
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.transform import Transform
from ddpm_hf.files import check_hashes
from ddpm_hf.pixels import TORCH

logger = logging.getLogger(__name__)

# Kinds of files that stand beside samples and hold none.
_BESIDE = {".json", ".md", ".txt", ".csv", ".yaml", "hidden"}


def load_images(source: Path) -> Tensor:
    """Images as this program or another one has left them, ``(N, C, H, W)`` of the type that they have.

    Args:
        source: A folder of images, at any depth, in the order of their paths, or of what else training reads: zip and
            tar files, arrays of numpy, parquet, and TIFFs of several pages; such a file alone; or a folder that
            `ddpm_hf.sampling.image_files` wrote.

    Raises:
        ValueError: there are none, they cannot be read, or they differ in size or colour.
    """
    is_file = source.is_file()
    if is_file:
        found = FolderOfImages(source.parent)
        found.put(source.name, state_of(source))
    elif source.is_dir():
        check_hashes(source)
        if (source / "samples.npz").exists():
            return _of_npz(source / "samples.npz")
        if (source / "samples.npy").exists():
            return _of_npy(source / "samples.npy")
        found = list_folder(source)
    else:
        raise ValueError(f"{source} is no file or folder of images")
    found, members = opened(source, found, is_file)
    if found.images and found.tables:
        raise ValueError(
            f"{source} holds {len(found.images)} images and {len(found.tables)} table(s) ({found.tables[0]}), and "
            "which of them are the samples is not clear; give the table itself, or move it out"
        )
    if not found.images and not found.tables:
        there = f", only {found.not_read()}" if found.not_read() else ""
        raise ValueError(
            f"{source} holds no images{there}; expected images, or a zip, tar, .npz, .npy or parquet of them"
        )
    if (+found.others).keys() - _BESIDE or found.archives or found.arrays:
        logger.warning("in %s are not read: %s", source, found.not_read())
    if found.tables:
        return torch.cat([_of_table(found.path / table) for table in found.tables])
    images = {"image": list(found.images)}
    dataset = datasets.Dataset.from_dict(images, features=datasets.Features({"image": datasets.Value("string")}))
    return _read(source, Loaded(dataset, "", found.path, advises=False, fetch=members.fetch))


def opened(source: Path, found: FolderOfImages, is_file: bool) -> tuple[FolderOfImages, Members]:
    """What files hold that hold images. Channels of an array that may be first or last are last, as ADM has them.

    Args:
        source: The samples, for messages.
        found: The files.
        is_file: Whether the source is one file.

    Raises:
        ValueError: one is damaged, or it is not clear which arrays are images.
    """
    for layout in (None, "HWC") if is_file and found.arrays else (None,):
        members = Members(found.path, DataConfig(name=str(source), layout=layout))
        try:
            return found if found.tables else members.open(found, is_file), members
        except ValueError as error:
            wrong = error
    raise ValueError(f"{source}: {str(wrong).partition('; give data.')[0]}") from wrong


def _of_npz(path: Path) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} has no array arr_0 of images as ADM's files have ({error})") from error
    return _of_array(images, f"arr_0 of {path}")


def _of_npy(path: Path) -> Tensor:
    try:
        return _of_array(np.load(path, mmap_mode="r", allow_pickle=False), str(path))
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error


def _of_array(images: npt.NDArray[Any], where: str) -> Tensor:
    if images.dtype.name not in TORCH or images.ndim != 4:
        raise ValueError(
            f"{where} is {images.dtype} of shape {images.shape} and must be (N, H, W, C) of {', '.join(TORCH)}"
        )
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


def table_of(path: Path) -> datasets.Dataset:
    """The rows of a parquet or arrow file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return datasets.Dataset(pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else _arrow(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error


def _of_table(path: Path) -> Tensor:
    return _read(path, Loaded(table_of(path), "", path.parent, advises=False))


def _arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def _read(source: Path, loaded: Loaded) -> Tensor:
    rows, dataset = rows_of(DataConfig(name=str(source)), loaded), loaded.dataset
    transform = settle(rows, Transform())
    images = torch.empty(len(dataset), *(transform.shape or ()), dtype=TORCH[transform.first_dtype or "uint8"])
    corrupt, position = list[str](), 0
    for chunk in decoded(rows, transform):
        for pixels, _ in chunk:
            if isinstance(pixels, str):
                corrupt.append(pixels)
            else:
                images.numpy()[position] = pixels
            position += 1
    if corrupt or not len(dataset):
        raise ValueError(sentence_of(rows, corrupt, "repair them, or take them out"))
    if rows.seen.transparent:
        logger.warning("%d image(s) with transparency in %s are laid on white", rows.seen.transparent, source)
    return images
