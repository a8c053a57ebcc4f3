"""TIFFs of several pages: each page is an image, with the values that it has."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.data.packing import Array, encoded, in_folder, load, write

GREY = np.random.default_rng(0).integers(256, size=(6, 8, 9), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(256, size=(6, 8, 9, 3), dtype=np.uint8)


def pages(*arrays: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("order", "<")) as tiff:
        for array in arrays:
            tiff.write(array, contiguous=False, metadata=None, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": ">"},
        {"bigtiff": True},
        {"bigtiff": True, "order": ">"},
        {"tile": (16, 16)},
        {"rowsperstrip": 3},
        {"rowsperstrip": 3, "bigtiff": True, "compression": "zlib"},
        {"extratags": [(270, "s", 0, "a description that is long", True), (65000, "H", 3, (1, 2, 3), True)]},
    ],
    ids=str,
)
@pytest.mark.parametrize("colour", [False, True])
def test_pages_of_every_form_of_tiff_keep_their_values(tmp_path: Path, options: dict[str, Any], colour: bool) -> None:
    truth = COLOUR if colour else GREY
    data = load(write(tmp_path / "a.tif", pages(*truth, **options)))
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy().reshape(truth.shape), truth)
    assert data.remark == "6 images are pages of 1 TIFF file(s)"


def test_deep_pages_keep_their_values(tmp_path: Path) -> None:
    deep = np.random.default_rng(2).integers(2**16, size=(3, 8, 9), dtype=np.uint16)
    data = load(write(tmp_path / "a.tif", pages(*deep)), dtype="uint16")
    assert np.array_equal(data.images[:, 0].numpy(), deep)
    floats = np.random.default_rng(3).random((3, 8, 9), dtype=np.float32)
    data = load(write(tmp_path / "b.tif", pages(*floats)), value_range=(0.0, 1.0))
    assert np.array_equal(data.images[:, 0].numpy(), floats)


def test_stacks_of_imagej_and_lower_resolutions_in_a_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True)
    data = load(tmp_path / "a.tif")
    assert np.array_equal(data.images[:, 0].numpy(), GREY)
    folder = tmp_path / "set"
    for i, array in enumerate(GREY[:2]):
        with tifffile.TiffWriter(write(folder / f"{i}.tif", b"")) as tiff:
            tiff.write(array, metadata=None)
            tiff.write(array[::2, ::2], subfiletype=1, metadata=None)
            tiff.write(array[::4, ::4], subfiletype=1, metadata=None)
    data = load(folder)
    assert np.array_equal(data.images[:, 0].numpy(), GREY[:2])
    assert data.remark == "not read: 4 copy or mask in a TIFF"


def test_broken_tiffs_are_named_and_other_files_of_frames_are_refused(tmp_path: Path) -> None:
    whole = pages(*GREY)
    folder = in_folder(tmp_path / "set", {"a.tif": whole, "b.tif": b"II*\0 and no more", "c.tif": b"no TIFF"})
    with pytest.raises(ValueError, match=r"2 of the 8 images .* row 6 \(b\.tif\).*row 7 \(c\.tif\)"):
        load(folder)
    cut = in_folder(tmp_path / "cut", {"a.tif": pages(*np.tile(GREY, (1, 9, 9)))[:-40]})
    with pytest.raises(ValueError, match=r"of the \d images .* \(a\.tif.*\): "):
        load(cut)
    gif = in_folder(tmp_path / "gif", {"a.gif": encoded(GREY, "GIF")})
    with pytest.raises(ValueError, match="it holds 6 frames; save the one that is meant"):
        load(gif)


def test_metadata_describe_all_pages_of_a_file(tmp_path: Path) -> None:
    table = b"file_name,kind\nb.tif,dog\na.tif,cat\n"
    folder = in_folder(tmp_path / "set", {"a.tif": pages(*GREY[:2]), "b.tif": pages(*GREY[2:5]), "metadata.csv": table})
    data = load(folder, label_column="kind")
    assert np.array_equal(data.images[:, 0].numpy(), GREY[[2, 3, 4, 0, 1]])
    assert data.labels is not None
    assert data.labels.tolist() == [1, 1, 1, 0, 0]
