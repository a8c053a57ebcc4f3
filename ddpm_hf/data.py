"""Images as one tensor in memory, and which of them make up the batch of a given step."""

import functools
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DIGITS = Path(__file__).parent / "assets" / "digits"


@dataclass(frozen=True)
class ImageData:
    """Decoded images.

    Args:
        name: What the images are, for messages and files.
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``, or None where the data have none.
    """

    name: str
    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return self.images.shape[0]


def load_image_data(name: str, split: str) -> ImageData:
    """Load and decode a data set of images.

    Args:
        name: "digits" (embedded; splits "train" and "test"), a parquet file, or what :func:`datasets.load_dataset`
            takes: a folder of images or an id on the Hub.
        split: A split of the data set, such as "train" or "train[:1000]".

    The image and label columns are found by their type. Grey images have one channel, all others three.

    Raises:
        ValueError: the data set cannot be loaded, is empty, has no image column, or its images differ in size.
    """
    try:
        if name == "digits":
            files = {part: str(DIGITS / f"{part}.parquet") for part in ("train", "test")}
            dataset = datasets.load_dataset("parquet", data_files=files, split=split)
        elif name.endswith(".parquet"):
            dataset = datasets.load_dataset("parquet", data_files={split.partition("[")[0]: name}, split=split)
        else:
            dataset = datasets.load_dataset(name, split=split)
    except (ValueError, OSError) as error:
        raise ValueError(f"split {split!r} of the data set {name!r} cannot be loaded: {error}") from error

    columns = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(
            f"the data set {name!r} has no column of images, only {dataset.column_names}; name another one"
        )

    grey = dataset[0][columns[0]].mode in ("1", "L")
    arrays = [np.asarray(image.convert("L" if grey else "RGB")) for image in dataset[columns[0]]]
    sizes = sorted({array.shape[:2] for array in arrays})
    if len(sizes) > 1:
        raise ValueError(
            f"the images of {name!r} differ in size (from {sizes[0]} to {sizes[-1]}, height and width); "
            "bring them to one size first"
        )
    images = torch.from_numpy(np.stack(arrays))
    images = images.unsqueeze(1) if grey else images.permute(0, 3, 1, 2).contiguous()

    label_columns = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = torch.tensor(dataset[label_columns[0]]) if label_columns else None
    return ImageData(name, images, labels)


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> npt.NDArray[np.int64]:
    """The images of the batch of ``step``, ``(batch_size,)``: a function of its arguments alone.

    The batches are cut one after the other from an endless row of permutations of all the images, one for each pass
    over the data, keyed by ``(seed, pass)``: each image appears once in each pass, and a batch may span two of them.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(position, num_images)
    rows = [_permutation(seed, epoch, num_images)[offsets[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return np.concatenate(rows)


def random_stream(purpose: str, seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each purpose, seed and key."""
    return np.random.default_rng([*purpose.encode(), seed, *key])


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> npt.NDArray[np.int64]:
    return random_stream("data order", seed, epoch).permutation(num_images)
