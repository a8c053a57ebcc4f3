"""Loading of images, and which of them a step sees."""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.data import batch_indices, load_image_data, random_stream


def test_the_embedded_digits_are_two_disjoint_parts_of_8_by_8_grey_images() -> None:
    train, test = load_image_data("digits", "train"), load_image_data("digits", "test")
    assert train.images.shape == (1297, 1, 8, 8)
    assert test.images.shape == (500, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.labels is not None
    assert set(train.labels.tolist()) == set(range(10))


def test_the_embedded_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    ours = [*load_image_data("digits", "train").images, *load_image_data("digits", "test").images]
    theirs = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert Counter(image.numpy().tobytes() for image in ours) == Counter(image.tobytes() for image in theirs)


def make_images(mode: str, sizes: list[tuple[int, int]]) -> list[Image.Image]:
    channels = () if mode == "L" else (len(mode),)
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(256, size=(*size, *channels), dtype=np.uint8)) for size in sizes]


def write_parquet(path: Path, images: list[Image.Image], column: str = "picture") -> str:
    features = datasets.Features({"name": datasets.Value("string"), column: datasets.Image()})
    content = {"name": [str(i) for i in range(len(images))], column: images}
    datasets.Dataset.from_dict(content, features=features).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_parquet_file_keeps_its_pixels_and_its_image_column_is_found(tmp_path: Path, mode: str) -> None:
    images = make_images(mode, [(4, 6)] * 3)
    data = load_image_data(write_parquet(tmp_path / "a.parquet", images), "train")
    assert data.images.shape == (3, 1 if mode == "L" else 3, 4, 6)
    assert data.labels is None
    for tensor, image in zip(data.images, images, strict=True):
        pixels = np.asarray(image)
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels.reshape(4, 6, -1))


def test_a_folder_of_images_has_its_subfolders_as_labels(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (label, 0, 0)).save(tmp_path / "set" / name / "0.png")
    data = load_image_data(str(tmp_path / "set"), "train")
    assert data.labels is not None
    assert data.labels.tolist() == data.images[:, 0, 0, 0].tolist() == [0, 1]


def test_bad_data_are_refused_with_a_sentence(tmp_path: Path) -> None:
    mixed = write_parquet(tmp_path / "mixed.parquet", make_images("L", [(4, 4), (4, 5)]))
    with pytest.raises(ValueError, match=r"differ in size \(from \(4, 4\) to \(4, 5\)"):
        load_image_data(mixed, "train")
    empty = write_parquet(tmp_path / "empty.parquet", [])
    with pytest.raises(ValueError, match=r"split 'train' of the data set .* cannot be loaded: .* no data"):
        load_image_data(empty, "train")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"no column of images, only \['text'\]"):
        load_image_data(str(tmp_path / "text.parquet"), "train")
    with pytest.raises(ValueError, match=r"'nowhere\.parquet' cannot be loaded"):
        load_image_data("nowhere.parquet", "train")
    with pytest.raises(ValueError, match="split 'validation' of the data set 'digits' cannot be loaded"):
        load_image_data("digits", "validation")


@pytest.mark.parametrize(("batch_size", "num_images"), [(3, 10), (7, 7), (25, 10)])
def test_each_pass_over_the_data_sees_each_image_once(batch_size: int, num_images: int) -> None:
    passes = 6
    seen = np.concatenate([batch_indices(step, batch_size, num_images, 0) for step in range(20)])[: passes * num_images]
    rows = seen[: len(seen) // num_images * num_images].reshape(-1, num_images)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(num_images), (len(rows), 1)))
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_a_batch_depends_on_step_and_seed_alone() -> None:
    late = batch_indices(1000, 16, 100, 3)
    batch_indices(5, 16, 100, 9)
    assert np.array_equal(batch_indices(1000, 16, 100, 3), late)
    assert not np.array_equal(batch_indices(1000, 16, 100, 4), late)
    assert late.shape == (16,)


def test_random_streams_differ_in_every_part_of_their_key() -> None:
    keys = [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1), ("a", 1, 1)]
    draws = [random_stream(*key).integers(2**63) for key in keys]
    assert len(set(draws)) == len(keys)
    assert random_stream("a", 1, 1).integers(2**63) == draws[-1]
