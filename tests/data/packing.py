"""Images in files of every kind, and how they are read."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images

Array = npt.NDArray[Any]


def png(image: Array) -> bytes:
    return encoded([image], "PNG")


def encoded(images: Any, kind: str, **options: Any) -> bytes:
    pages, file = [Image.fromarray(image) for image in images], io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(file, kind, **more, **options)
    return file.getvalue()


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def in_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        write(folder / name, content)
    return folder


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], packed: Callable[[bytes], bytes] = bytes) -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return write(path, packed(stream.getvalue()))


def load(path: Path, **settings: Any) -> ImageData:
    return load_cached_images(DataConfig(str(path), cache_dir=path.with_name("cache"), **settings))


def flat(level: int) -> bytes:
    return png(np.full((2, 2), level, dtype=np.uint8))


def levels(data: ImageData) -> list[int]:
    return [int(image[0, 0, 0]) for image in data.images]


def files(*paths: str) -> dict[str, bytes]:
    """Flat images of grey levels 0, 1, ...; other files hold text."""
    return {path: flat(i) if path.lower().endswith(".png") else b"text" for i, path in enumerate(paths)}
