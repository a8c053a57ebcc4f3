"""Writes the embedded data set of digits: ``python -m ddpm_hf.assets.make_digits``.

The images are the 1,797 digits of the UCI "Optical Recognition of Handwritten Digits" set that scikit-learn ships, 8x8
pixels of 0..16. They are stored as 8-bit grey PNGs, ``round(255 v / 16)``, in two parquet files: 1,297 to train on, 500
held out.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray
from PIL import Image as PILImage

NUM_TEST_IMAGES = 500
SPLIT_SEED = 0


def load_digits_uint8() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 1,797 digits: images (N, 8, 8) uint8 in 0..255, labels (N,) int64 in 0..9."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.int64)


def split_indices(num_images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the held-out images: always the same, ascending.

    Drawn at random and not stratified by label: the held-out images stand for what a perfect model would draw, and its
    images have no more even classes than chance gives them.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(num_images)
    return np.sort(order[NUM_TEST_IMAGES:]), np.sort(order[:NUM_TEST_IMAGES])


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """One (H, W) uint8 image as the bytes of a grey PNG."""
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_split(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Writes images (N, 8, 8) uint8 and labels (N,) as a parquet file that ``datasets`` reads."""
    columns = {"image": [{"bytes": encode_png(image), "path": None} for image in images], "label": labels.tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    Dataset.from_dict(columns, features=features).to_parquet(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded data set of digits as two parquet files.")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "digits", help="where to write")
    output_dir: Path = parser.parse_args().output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits_uint8()
    train, test = split_indices(len(images))
    write_split(output_dir / "train.parquet", images[train], labels[train])
    write_split(output_dir / "test.parquet", images[test], labels[test])
    print(f"{len(train)} training and {len(test)} held-out digits written to {output_dir}")


if __name__ == "__main__":
    main()
