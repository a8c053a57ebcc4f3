"""Loading of images, and which of them a step sees."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, batch_indices, load_cached_images, load_image_data
from ddpm_hf.randomness import random_stream


def load(name: object, **settings: Any) -> ImageData:
    return load_cached_images(DataConfig(name=str(name), **settings))


def test_the_embedded_digits_are_two_disjoint_parts_of_8_by_8_grey_images() -> None:
    train, test = load("digits"), load("digits", split="test")
    assert train.images.shape == (1297, 1, 8, 8)
    assert test.images.shape == (500, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.labels is not None
    assert set(train.labels.tolist()) == set(range(10))
    assert train.num_classes == 10
    assert train.fingerprint != test.fingerprint


def test_the_embedded_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    ours = [*load("digits").images, *load("digits", split="test").images]
    theirs = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert Counter(image.numpy().tobytes() for image in ours) == Counter(image.tobytes() for image in theirs)


def make_images(mode: str, sizes: list[tuple[int, int]]) -> list[Image.Image]:
    channels = () if mode == "L" else (len(mode),)
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(256, size=(*size, *channels), dtype=np.uint8)) for size in sizes]


def write_parquet(path: Path, images: list[Image.Image], **columns: tuple[Any, list[Any]]) -> Path:
    """A column "picture" of images, and others by name, each with its type."""
    columns = {"picture": (datasets.Image(), images), **columns}
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    datasets.Dataset.from_dict({name: values for name, (_, values) in columns.items()}, features).to_parquet(path)
    return path


def write_folder(folder: Path, per_class: int, classes: tuple[str, ...] = ("cat", "dog"), size: int = 6) -> Path:
    """Coloured PNG files in a folder for each class."""
    images = iter(make_images("RGB", [(size, size)] * (per_class * len(classes))))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            next(images).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_parquet_file_keeps_its_pixels_and_its_image_column_is_found(tmp_path: Path, mode: str) -> None:
    images = make_images(mode, [(4, 6)] * 3)
    name = (datasets.Value("string"), ["a", "b", "c"])
    data = load(write_parquet(tmp_path / "a.parquet", images, name=name))
    assert data.images.shape == (3, 1 if mode == "L" else 3, 4, 6)
    assert data.shape == data.images.shape[1:]
    assert data.labels is None
    assert data.num_classes is None
    for tensor, image in zip(data.images, images, strict=True):
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image).reshape(4, 6, -1))


def test_a_folder_of_images_has_its_subfolders_as_labels(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "set", 3))
    paths = sorted((tmp_path / "set").glob("*/*.png"))
    assert data.labels is not None
    assert data.labels.tolist() == [["cat", "dog"].index(path.parent.name) for path in paths]
    for tensor, path in zip(data.images, paths, strict=True):
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))


def test_a_changed_file_gives_another_cache_and_a_copy_the_same_fingerprint(tmp_path: Path) -> None:
    images = make_images("L", [(4, 4)] * 3)
    first = load(write_parquet(tmp_path / "a.parquet", images)).fingerprint
    assert load(write_parquet(tmp_path / "b.parquet", images)).fingerprint == first
    assert load(write_parquet(tmp_path / "a.parquet", images[::-1])).fingerprint != first


def test_splits_columns_and_transform_are_those_of_the_settings(tmp_path: Path) -> None:
    images, masks = make_images("RGB", [(8, 10)] * 6), make_images("L", [(8, 10)] * 6)
    path = write_parquet(
        tmp_path / "a.parquet",
        images,
        mask=(datasets.Image(), masks),
        kind=(datasets.ClassLabel(names=["x", "y", "z"]), [0, 1, 0, 1, 0, 1]),
        size=(datasets.Value("int32"), [0, 1, 2, 3, 4, 5]),
    )
    data = load(path, image_column="mask", split="train[2:5]")
    assert np.array_equal(data.images[0, 0].numpy(), np.asarray(masks[2]))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0]
    assert data.num_classes == 3  # declared, though none of the images is a z
    data = load(path, image_column="picture", label_column="size", center_crop=True, resolution=4, channels=1)
    expected = images[5].convert("L").crop((1, 0, 9, 8)).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(data.images[5, 0].numpy(), np.asarray(expected))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.num_classes == 6


BAD_COLUMNS = [
    ({}, r"several columns of images, \['picture', 'mask'\]; give data.image_column"),
    ({"image_column": "photo"}, r"data.image_column is 'photo', and the columns of .* are \['picture', 'mask', 'text'"),
    ({"image_column": "rank"}, r"data.image_column is 'rank', a column of .*int64.* and not of images"),
    ({"image_column": "text"}, r"2 of the 2 images .* cannot be decoded: row 0 \(a\): there is no such file; "),
    (
        {"image_column": "mask", "label_column": "size"},
        r"data.label_column is 'size', a column of .* not of class labels",
    ),
    ({"image_column": "mask", "label_column": "class"}, r"data.label_column is 'class', and the columns of"),
    (
        {"image_column": "mask", "label_column": "rank"},
        r"1 of the 2 rows .* no label of 0 or more in the column 'rank'",
    ),
]


@pytest.mark.parametrize(("settings", "said"), BAD_COLUMNS)
def test_columns_that_are_not_there_or_not_clear_are_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    path = write_parquet(
        tmp_path / "a.parquet",
        make_images("L", [(4, 4)] * 2),
        mask=(datasets.Image(), make_images("L", [(4, 4)] * 2)),
        text=(datasets.Value("string"), ["a", "b"]),
        rank=(datasets.Value("int64"), [0, None]),
        size=(datasets.Value("float32"), [0, 1]),
    )
    with pytest.raises(ValueError, match=said):
        load(path, **settings)


def test_labels_that_are_all_kept_back_are_none(tmp_path: Path) -> None:
    kind = (datasets.ClassLabel(names=["x", "y"]), [-1, -1])
    path = write_parquet(tmp_path / "a.parquet", make_images("L", [(4, 4)] * 2), kind=kind)
    assert load(path).labels is None
    assert load(path).num_classes is None
    with pytest.raises(ValueError, match="2 of the 2 rows"):
        load(path, label_column="kind")


def test_bad_data_are_refused_with_a_sentence(tmp_path: Path) -> None:
    images = make_images("L", [(4, 4), (4, 5)])
    with pytest.raises(ValueError, match=r"row 1 .* has height and width \(4, 5\) and the first one \(4, 4\)"):
        load(write_parquet(tmp_path / "mixed.parquet", images))
    empty = tmp_path / "empty.parquet"
    pq.ParquetWriter(empty, pq.read_schema(write_parquet(empty, images))).close()
    for split in ("train", "train[:0]"):
        with pytest.raises(ValueError, match=r"split 'train.*' of the data set .* cannot be loaded: .* no data"):
            load(empty, split=split)
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"no column of images, only \['text'\]"):
        load(tmp_path / "text.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_loaded_is_refused_with_a_sentence(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    garbled = write_parquet(tmp_path / "garbled.parquet", make_images("L", [(40, 40)] * 9))
    content = garbled.read_bytes()
    garbled.write_bytes(content[:4] + bytes(12_000) + content[12_004:])  # the table of contents is at the end
    (tmp_path / "empty").mkdir()
    folder = write_folder(tmp_path / "set", 1)
    for settings, reason in [
        ({"name": "digits", "split": "validation"}, r"split 'validation' of the data set 'digits' .*'train', 'test'"),
        ({"name": "nowhere.parquet"}, r"'nowhere\.parquet' cannot be loaded: there is no such file"),
        ({"name": str(tmp_path / "nowhere")}, r"nowhere' cannot be loaded: there is no such file or folder"),
        ({"name": str(tmp_path / "empty")}, r"empty' cannot be loaded: the folder holds no images"),
        ({"name": "nobody/nothing"}, r"'nobody/nothing' cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub"),
        (
            {"name": str(tmp_path / "broken.parquet")},
            r"broken.parquet' cannot be loaded: Parquet magic bytes not found",
        ),
        ({"name": str(garbled)}, r"garbled.parquet' cannot be (loaded|read): .*deserialize"),
        ({"name": str(folder), "config": "large"}, r"set' cannot be loaded: BuilderConfig 'large' not found"),
    ]:
        with pytest.raises(ValueError, match=reason) as caught:
            load_image_data(DataConfig(streaming=streaming, **settings))
        assert "see data.name" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_batch_of_a_step_is_cut_from_the_order_of_the_data() -> None:
    data = load("digits")
    assert data.labels is not None
    picked = batch_indices(5, 100, len(data), 3)
    images, labels = data.batch(5, 100, 30, 40, seed=3)
    assert labels is not None
    assert torch.equal(images, data.images[picked[30:40]])
    assert torch.equal(labels, data.labels[picked[30:40]])


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
