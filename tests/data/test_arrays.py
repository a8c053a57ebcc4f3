"""Arrays of numbers: which of them are images, which axis is which, and what becomes of their types."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from tests.data.packing import Array, flat, in_folder, levels, load, npy, npz, write, zipped

GREY = np.random.default_rng(0).integers(256, size=(6, 8, 9), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(256, size=(6, 8, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "layout", "shape"),
    [
        (np.zeros((2, 8, 9), np.uint8), None, (2, 1, 8, 9)),
        (np.zeros((2, 8, 9, 1), np.uint8), None, (2, 1, 8, 9)),
        (np.zeros((2, 3, 9, 8), np.uint8), None, (2, 3, 9, 8)),
        (np.zeros((2, 2, 2, 3), np.uint8), None, (2, 3, 2, 2)),
        (np.zeros((2, 5, 8, 9), np.uint8), None, (2, 5, 8, 9)),
        (np.zeros((2, 8, 9, 5), np.uint8), None, (2, 5, 8, 9)),
        (np.zeros((2, 9, 9, 13), np.uint8), "HWC", (2, 13, 9, 9)),
        (np.zeros((2, 13, 9, 9), np.uint8), "CHW", (2, 13, 9, 9)),
    ],
)
def test_which_axis_of_an_array_is_which(
    tmp_path: Path, array: Array, layout: str | None, shape: tuple[int, ...]
) -> None:
    data = load(write(tmp_path / "a.npy", npy(array)), layout=layout)
    assert tuple(data.images.shape) == shape


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (
            {"a.npy": npy(np.zeros((2, 9, 9, 13), np.uint8))},
            {},
            r"a\.npy has the shape \(N, 9, 9, 13\), whose channels may",
        ),
        ({"a.npy": npy(np.zeros((4, 784), np.uint8))}, {}, r"\(4, 784\), and images have \(N, H, W\), \(N, H, W, C\)"),
        ({"a.npy": npy(np.zeros((4, 8, 8), np.uint8))}, {"layout": "HWC"}, r"and images have \(N, H, W, C\)"),
        ({"a.npy": npy(GREY)[:-9]}, {}, r"a\.npy is cut off: its shape \(6, 8, 9\) takes 432 bytes and it holds 423"),
        ({"a.npy": b"\x93NUMPY\1\0"}, {}, r"a\.npy is no array of numpy"),
        ({"a.npy": b"\x93NUMPY\1\0\7\0{'a': ("}, {}, r"a\.npy is no array of numpy \(.*EOF in multi-line"),
        ({"a.npy": np.array([{}]).dumps()}, {}, r"a\.npy is no array of numpy"),
        ({"a.npy": npy(np.array(["a", "b"]))}, {}, r"a\.npy holds no array of images, only a"),
        ({"a.npy": npy(GREY * 1j)}, {}, r"a\.npy holds no array of images, only a"),
        ({"a.npz": npz(a=GREY, b=COLOUR)}, {}, r"a\.npz holds several arrays of images, a, b; give data\.image_column"),
        (
            {"a.npz": npz(a=GREY, b=COLOUR)},
            {"image_column": "c"},
            r"image_column is 'c', and the arrays of a\.npz are a, b",
        ),
        (
            {"a.npz": npz(a=GREY, ids=np.arange(6), n=np.arange(6))},
            {},
            r"several arrays of integers, ids, n; give data\.lab",
        ),
        ({"a.npz": npz(a=GREY, b=np.arange(6.0))}, {"label_column": "b"}, "label_column is 'b', and that array"),
        ({"a.npz": npz(a=GREY)[:-9]}, {}, r"a\.npz is no whole \.npz file"),
        (
            {"0.npy": npy(GREY), "1.npy": npy(GREY)},
            {},
            r"0\.npy has the shape \(6, 8, 9\), which may be several images",
        ),
        ({"0.npy": npy(COLOUR), "1.npy": npy(GREY[0].reshape(-1)[:3])}, {}, None),
    ],
)
def test_arrays_that_are_not_clear_are_refused(
    tmp_path: Path, content: dict[str, bytes], settings: dict[str, Any], said: str | None
) -> None:
    folder = in_folder(tmp_path / "set", content)
    path = folder / next(iter(content)) if len(content) == 1 else folder
    if said is None:
        assert load(path).labels is None  # of another length
        return
    with pytest.raises(ValueError, match=said) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "method"), [("a.zip", 0), ("a.zip", 8), ("a.npz", 0), ("a.npz", 8)])
def test_an_array_with_other_bytes_than_were_packed_is_refused(tmp_path: Path, name: str, method: int) -> None:
    arrays = {"arr_0.npy": npy(COLOUR), "arr_1.npy": npy(np.arange(6))}
    content = bytearray(zipped(tmp_path / name, arrays, method).read_bytes())
    content[300] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        load(write(tmp_path / name, bytes(content)))


def test_objects_in_arrays_are_never_unpickled(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}, {}]), allow_pickle=True)
    for name, content in (("a.npy", file.getvalue()), ("a.npz", npz(arr_0=GREY))):
        path = write(tmp_path / name, content)
        if name == "a.npz":
            zipped(path, {"arr_0.npy": file.getvalue()})
        with pytest.raises(ValueError, match="holds Python objects, which are not read, as they may run code"):
            load(path)


def test_arrays_of_a_folder_are_images_or_stacks_and_do_not_outvote_images(tmp_path: Path) -> None:
    stacks = in_folder(tmp_path / "stacks", {f"{i}.npy": npy(np.full((20, 8, 9), i, np.uint8)) for i in range(2)})
    assert tuple(load(stacks).images.shape) == (40, 1, 8, 9)
    two = in_folder(tmp_path / "two", {f"{i}.npy": npy(GREY) for i in range(2)})
    assert tuple(load(two, layout="HW").images.shape) == (12, 1, 8, 9)
    assert tuple(load(two, layout="CHW").images.shape) == (2, 6, 8, 9)
    mixed = in_folder(tmp_path / "mixed", {"a.png": flat(3), "a.npy": npy(GREY), "b.npz": npz(a=GREY)})
    data = load(mixed)
    assert (levels(data), data.remark) == ([3], "not read: 1 .npy, 1 .npz")


def test_settings_by_which_arrays_are_read_make_other_caches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", npy(np.zeros((2, 8, 9), np.int32)))
    types = [load(path, value_range=value_range).images.dtype for value_range in (None, (0.0, 9.0))]
    assert types == [torch.uint8, torch.float32]
    array = np.random.default_rng(0).integers(256, size=(2, 9, 9, 9), dtype=np.uint8)
    path = write(tmp_path / "b.npy", npy(array))
    last, first = load(path, layout="HWC"), load(path, layout="CHW")
    assert np.array_equal(last.images.numpy(), array.transpose(0, 3, 1, 2))
    assert np.array_equal(first.images.numpy(), array)
    assert last.fingerprint != first.fingerprint


KINDS = [datasets.Array2D(dtype="int32", shape=(8, 9)), datasets.List(datasets.List(datasets.Value("int64"))), None]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_type_of_whole_numbers_follows_from_the_settings_alone(tmp_path: Path, kind: Any) -> None:
    values = np.random.default_rng(0).integers(4096, size=(6, 8, 9))
    values[2] = 7
    path = tmp_path / ("a.npy" if kind is None else "a.parquet")
    if kind is None:
        np.save(path, values)
    else:
        features = datasets.Features({"image": kind})
        datasets.Dataset.from_dict({"image": values.tolist()}, features=features).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"numbers from .* and 0 to 255 are taken for uint8; give data\.dtype uint16, or"
    ):
        load(path)
    for settings, dtype in (({"dtype": "uint16"}, torch.uint16), ({"value_range": (0.0, 4095.0)}, torch.float32)):
        data = load(path, **settings)
        assert data.images.dtype == dtype
        assert np.array_equal(data.images[:, 0].numpy(), values)


def test_deep_and_floating_arrays_keep_their_values(tmp_path: Path) -> None:
    deep = np.random.default_rng(2).integers(2**16, size=(6, 8, 9, 5), dtype=np.uint16)
    data = load(write(tmp_path / "a.npy", npy(deep.transpose(0, 3, 1, 2))))
    assert np.array_equal(data.images.numpy().transpose(0, 2, 3, 1), deep)
    floats = np.random.default_rng(3).random((6, 8, 9), dtype=np.float32)
    for form in (floats, floats.astype(np.float64), floats.astype(">f4")):
        data = load(write(tmp_path / "b.npy", npy(form)), value_range=(0.0, 1.0))
        assert np.array_equal(data.images[:, 0].numpy(), floats)
