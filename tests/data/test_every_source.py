"""Every form in which people have images: the values arrive bit for bit, a run trains on them and draws."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images, load_image_data
from ddpm_hf.training.report import described_data
from ddpm_hf.training.run import Run
from ddpm_hf.training.settings import Config
from ddpm_hf.training.setup import build
from tests.data.packing import Array, encoded, in_folder, npy, npz, png, tarred, write, zipped
from train_accelerate import train

ROOT = Path(__file__).parents[2]
RGB = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(256, size=(6, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 0, 0, 1, 1, 1])
CLASSES = ("cat", "dog")
BY_CLASS = {"cat": RGB[:3], "dog": RGB[3:]}


def in_classes(ending: str = "png", encode: Callable[[Array], bytes] = png) -> dict[str, bytes]:
    """Files in a folder for each class."""
    return {f"{CLASSES[k]}/{i}.{ending}": encode(image) for i, (image, k) in enumerate(zip(RGB, LABELS, strict=True))}


def shard(numbers: range, beside: Callable[[int], dict[str, bytes]]) -> dict[str, bytes]:
    """Images of WebDataset, each with other files of its key."""
    files: dict[str, bytes] = {}
    for i in numbers:
        files |= {f"{i:03}.png": png(RGB[i]), **{f"{i:03}.{ending}": content for ending, content in beside(i).items()}}
    return files


def with_cls(i: int) -> dict[str, bytes]:
    return {"cls": str(LABELS[i]).encode(), "txt": b"a caption"}


def with_json(i: int) -> dict[str, bytes]:
    return {"json": json.dumps({"label": CLASSES[LABELS[i]], "url": "http://a"}).encode()}


def of_table(path: Path, kind: Any, images: Any) -> Path:
    features = datasets.Features({"image": kind, "label": datasets.ClassLabel(names=list(CLASSES))})
    table = datasets.Dataset.from_dict({"image": images, "label": LABELS.tolist()}, features=features)
    table.to_parquet(path) if path.suffix else table.save_to_disk(path)
    return path


def paths_in_table(folder: Path) -> Path:
    in_folder(folder, in_classes())
    return of_table(folder / "a.parquet", datasets.Value("string"), sorted(in_classes()))


def folder_of(**files: bytes) -> Callable[[Path], Path]:
    return lambda folder: in_folder(folder, {name.replace("_DOT_", "."): content for name, content in files.items()})


NUMBERS = datasets.Array3D(dtype="uint8", shape=(8, 8, 3))
FIRST = datasets.Array3D(dtype="uint8", shape=(3, 8, 8))
LISTS = datasets.List(datasets.List(datasets.List(datasets.Value("int64"))))
CHANNELS_FIRST = RGB.transpose(0, 3, 1, 2)

# Each makes a data set of RGB (or GREY, for those at the end) and of LABELS in a folder; what it returns is data.name.
LABELLED: dict[str, Callable[[Path], Path]] = {
    "folder": lambda f: in_folder(f / "set", in_classes()),
    "zip": lambda f: zipped(f / "set.zip", in_classes()),
    "zip, stored": lambda f: zipped(f / "set.zip", {f"set/{name}": c for name, c in in_classes().items()}, 0),
    "zip of each class": lambda f: [zipped(f / "s" / f"{name}.zip", of_class(name)) for name in CLASSES][-1].parent,
    "tar": lambda f: tarred(f / "set.tar", {f"./{name}": content for name, content in in_classes().items()}),
    "tar.gz": lambda f: tarred(f / "set.tar.gz", in_classes(), gzip.compress),
    "tgz in a folder": lambda f: tarred(f / "set" / "set.tgz", in_classes(), gzip.compress).parent,
    "tar.bz2": lambda f: tarred(f / "set.tar.bz2", in_classes(), bz2.compress),
    "tar.xz": lambda f: tarred(f / "set.TAR.XZ", in_classes(), lzma.compress),
    "WebDataset": lambda f: (
        [tarred(f / "set" / f"part-{i}.tar", shard(range(3 * i, 3 * i + 3), with_cls)) for i in range(2)][-1].parent
    ),
    "WebDataset, JSON": lambda f: tarred(f / "set.tar", shard(range(6), with_json)),
    "parquet of bytes": lambda f: of_table(f / "a.parquet", datasets.Image(), [Image.fromarray(i) for i in RGB]),
    "parquet of paths": lambda f: paths_in_table(f),
    "save_to_disk": lambda f: of_table(f / "saved", datasets.Image(), [Image.fromarray(image) for image in RGB]),
    "Array3D": lambda f: of_table(f / "a.parquet", NUMBERS, RGB),
    "Array3D, channels first": lambda f: of_table(f / "a.parquet", FIRST, CHANNELS_FIRST),
    "nested lists": lambda f: of_table(f / "saved", LISTS, RGB.tolist()),
    "npy in classes": lambda f: in_folder(f / "set", in_classes("npy", npy)),
    "npy stacks in classes": lambda f: in_folder(
        f / "set", {f"{name}/a.npy": npy(image) for name, image in BY_CLASS.items()}
    ),
    "npy and labels": lambda f: in_folder(f / "set", {"X.npy": npy(RGB), "y.npy": npy(LABELS)}),
    "npz": lambda f: write(f / "set.npz", npz(images=RGB, labels=LABELS)),
    "npz of ADM": lambda f: write(f / "set.npz", npz(compressed=True, arr_0=RGB, arr_1=LABELS)),
    "npz of MNIST": lambda f: write(f / "m.npz", npz(x_train=RGB, y_train=LABELS, x_test=RGB[:2], y_test=LABELS[:2])),
    "npz of each image": lambda f: in_folder(
        f / "set", {f"{i}.npz": npz(x=image, y=k) for i, (image, k) in enumerate(zip(RGB, LABELS, strict=True))}
    ),
    "zip of npy": lambda f: zipped(f / "set.zip", in_classes("npy", npy)),
    "tar of npz stacks": lambda f: tarred(
        f / "set.tar", {"a.npz": npz(x=RGB[:4], y=LABELS[:4]), "b.npz": npz(x=RGB[4:], y=LABELS[4:])}
    ),
    "TIFFs of pages in classes": lambda f: in_folder(
        f / "set", {f"{name}/a.tif": encoded(image, "TIFF") for name, image in BY_CLASS.items()}
    ),
    "zip of TIFFs of pages": lambda f: zipped(
        f / "set.zip", {f"{name}/a.TIFF": encoded(image, "TIFF") for name, image in BY_CLASS.items()}
    ),
}
UNLABELLED: dict[str, Callable[[Path], Path]] = {
    "npy": lambda f: write(f / "set.npy", npy(RGB)),
    "npy, channels first": lambda f: write(f / "set.npy", npy(CHANNELS_FIRST)),
    "npy of Fortran": lambda f: write(f / "set.npy", npy(np.asfortranarray(RGB))),
    "npy of 64 bits": lambda f: write(f / "set.npy", npy(RGB.astype(np.int64))),
    "TIFF of pages": lambda f: write(f / "set.tif", encoded(RGB, "TIFF")),
    "TIFF of packed pages": lambda f: write(f / "set.tif", encoded(RGB, "TIFF", compression="tiff_adobe_deflate")),
}
GREYS: dict[str, Callable[[Path], Path]] = {
    "npy of greys": lambda f: write(f / "set.npy", npy(GREY)),
    "npy of each grey": lambda f: in_folder(f / "set", {f"{i}.npy": npy(image) for i, image in enumerate(GREY)}),
    "npz of greys": lambda f: write(f / "set.npz", npz(arr_0=GREY, names=np.array(["a", "b"]))),
    "Array2D": lambda f: of_table(f / "a.parquet", datasets.Array2D(dtype="uint8", shape=(8, 8)), GREY),
    "TIFF of grey pages": lambda f: write(f / "set.tif", encoded(GREY, "TIFF")),
}
EVERY = {**LABELLED, **UNLABELLED, **GREYS}


def of_class(name: str) -> dict[str, bytes]:
    return {path.partition("/")[2]: content for path, content in in_classes().items() if path.startswith(name)}


def truth_of(source: str) -> torch.Tensor:
    return torch.from_numpy(GREY[:, None] if source in GREYS else CHANNELS_FIRST.copy())


@pytest.mark.parametrize("source", EVERY)
def test_the_values_of_every_source_arrive_bit_for_bit(source: str, tmp_path: Path) -> None:
    data = load_cached_images(DataConfig(str(EVERY[source](tmp_path)), cache_dir=tmp_path / "cache"))
    assert torch.equal(data.images, truth_of(source))
    if source in LABELLED:
        assert data.labels is not None
        assert data.labels.tolist() == LABELS.tolist()
        assert data.num_classes == 2
    classes = "" if data.num_classes is None else " in 2 classes"
    assert f": 6 images of {' x '.join(map(str, data.shape))}{classes}" in described_data(data)


@pytest.mark.parametrize("source", EVERY)
def test_a_stream_of_every_source_has_the_same_images_and_labels(source: str, tmp_path: Path) -> None:
    data = load_image_data(DataConfig(str(EVERY[source](tmp_path)), streaming=True))
    images, labels = data.batch(0, 6, 0, 6, seed=0)
    order = [next(i for i, image in enumerate(truth_of(source)) if torch.equal(image, one)) for one in images]
    assert sorted(order) == [*range(6)]
    if source in LABELLED:
        assert labels is not None
        assert labels.tolist() == LABELS[order].tolist()


TABLES = ("parquet of paths", "save_to_disk", "nested lists", "npz of MNIST")


@pytest.mark.parametrize("source", [source for source in EVERY if source not in TABLES])
def test_samples_in_the_form_of_every_source_are_scored_as_they_are(source: str, tmp_path: Path) -> None:
    assert torch.equal(load_images(EVERY[source](tmp_path)), truth_of(source))


def tiny_config(folder: Path, *words: object) -> Config:
    """A network of the smallest kind, two steps, and four images drawn."""
    small = [
        *("--output_dir", folder / "run", "--threads", 1, "--training.steps", 2, "--training.batch_size", 4, "--quiet"),
        *("--data.name", folder, "--data.resolution", "null", "--data.cache_dir", folder / "cache"),
        *("--model.block_out_channels", "[8]", "--model.norm_num_groups", 4, "--model.layers_per_block", 1),
        *("--model.attention_head_dim", "null"),
        *("--model.down_block_types", "[DownBlock2D]", "--model.up_block_types", "[UpBlock2D]"),
        *("--evaluation.num_images", 4, "--evaluation.grid_images", 4, "--evaluation.num_inference_steps", 2),
    ]
    return parse_config([str(word) for word in [*small, *words]], ROOT / "configs" / "train" / "photos.yaml")


@pytest.mark.parametrize("source", EVERY)
def test_a_run_trains_on_every_source_and_draws(source: str, tmp_path: Path) -> None:
    run = Run(build(tiny_config(tmp_path, "--data.name", EVERY[source](tmp_path)), Accelerator()))
    train(run)
    run.finish(*run.score())
    drawn = DDPMCustomPipeline.from_pretrained(tmp_path / "run")(seeds=[0, 1], num_inference_steps=2).images
    assert [image.size for image in drawn] == [(8, 8)] * 2


@pytest.mark.parametrize("kind", ["array", "tensor", "floats", "lists"])
def test_a_run_trains_on_an_array_of_a_notebook(tmp_path: Path, kind: str) -> None:
    images: dict[str, tuple[Any, Any]] = {
        "array": (RGB, None),
        "tensor": (torch.from_numpy(CHANNELS_FIRST.copy()), None),
        "floats": (torch.from_numpy(RGB / np.float32(255)).double(), (0.0, 1.0)),
        "lists": (RGB.tolist(), None),
    }
    values, value_range = images[kind]
    data = ImageData.of(values, LABELS, value_range=value_range)
    x_0 = data.format.to_model(data.images)
    assert torch.allclose(x_0, torch.from_numpy(CHANNELS_FIRST / np.float32(127.5) - 1), atol=1e-6)
    assert (data.num_classes, data.fingerprint) == (
        2,
        ImageData.of(values, LABELS, value_range=value_range).fingerprint,
    )
    run = Run(build(tiny_config(tmp_path), Accelerator(), data))
    train(run)
    run.finish(*run.score())
    assert DDPMCustomPipeline.from_pretrained(tmp_path / "run")(seeds=[0], num_inference_steps=2).images[0].size == (
        8,
        8,
    )


@pytest.mark.parametrize(
    ("images", "labels", "settings", "said"),
    [
        (np.zeros((4, 784)), None, {}, r"the array of 'images' has the shape \(4, 784\), and images have"),
        (np.zeros((4, 9, 9, 13)), None, {}, r"\(N, 9, 9, 13\), whose channels .*; give layout HWC or CHW"),
        (np.zeros((4, 8, 8)), None, {}, r"float32 values from 0 to 0, which have no range .*; give value_range="),
        (np.full((4, 8, 8), np.nan), None, {"value_range": (0, 1)}, "holds values that are not finite"),
        (np.array([[["a"]]]), None, {}, r"is <U1 of shape \(1, 1, 1\), and must be numbers"),
        (
            GREY,
            LABELS[:3],
            {},
            r"are int64 of shape \(3,\) and must be integers of 0 or more, \(6,\)",
        ),
        (GREY, -LABELS, {}, r"must be integers of 0 or more"),
        (GREY, LABELS + 0.5, {}, r"labels of 'images' are float64"),
    ],
)
def test_arrays_of_a_notebook_that_are_not_clear_are_refused(
    images: Array, labels: Any, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        ImageData.of(images, labels, **settings)
    assert "\n" not in str(caught.value)
