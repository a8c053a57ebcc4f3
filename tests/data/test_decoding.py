"""Images of every form: training and scoring read the same pixels, the true ones, or refuse with the same reason."""

import io
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_hf.data.decoding import decode
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images

GREY = np.random.default_rng(0).integers(256, size=(3, 5), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(256, size=(3, 5, 3), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(2**16, size=(3, 5), dtype=np.uint16)
CLEAR = np.full((3, 5), 9, dtype=np.uint8)  # an alpha channel
PALETTE = Image.fromarray(RGB).quantize(15)
FORMATS = {
    "PNG": ".PNG",
    "TIFF": ".Tif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "GIF": ".gif",
    "PPM": ".pgm",
    "JPEG2000": ".jp2",
}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **{"lossless": True, **options} if kind == "WEBP" else options)
    return file.getvalue()


def both(folder: Path, *files: tuple[str, bytes]) -> tuple[Tensor, Tensor]:
    """What training and scoring make of files in one folder."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for name, content in files:
        (pictures / name).write_bytes(content)
    return load_cached_images(DataConfig(str(pictures), cache_dir=folder / "cache")).images, load_images(pictures)


def layers(*arrays: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.dstack(arrays)


def on_white(values: npt.NDArray[np.uint8], opacity: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    share = opacity.reshape(*opacity.shape, *[1] * (values.ndim - 2)) / 255
    return np.round(values * share + 255 * (1 - share))


CASES: dict[str, tuple[Image.Image, str, npt.NDArray[Any]]] = {
    **{f"grey {kind}": (Image.fromarray(GREY), kind, GREY) for kind in FORMATS},
    **{f"colour {kind}": (Image.fromarray(RGB), kind, RGB) for kind in FORMATS if kind not in ("GIF", "PPM")},
    "bits": (Image.fromarray(GREY > 100), "PNG", np.where(GREY > 100, 255, 0)),
    "bits, TIFF": (Image.fromarray(GREY > 100), "TIFF", np.where(GREY > 100, 255, 0)),
    "grey with alpha": (Image.fromarray(layers(GREY, CLEAR)), "PNG", on_white(GREY, CLEAR)),
    "colour with alpha": (Image.fromarray(layers(RGB, CLEAR)), "PNG", on_white(RGB, CLEAR)),
    "opaque": (Image.fromarray(layers(RGB, np.full((3, 5), 255, dtype=np.uint8))), "PNG", RGB),
    "palette": (PALETTE, "PNG", np.asarray(PALETTE.convert("RGB"))),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), "TIFF", RGB),
    "16 bits": (Image.fromarray(DEEP), "PNG", DEEP),
    "16 bits, TIFF": (Image.fromarray(DEEP), "TIFF", DEEP),
    "16 bits, PGM": (Image.fromarray(DEEP), "PPM", DEEP),
}


@pytest.mark.parametrize("case", CASES)
def test_the_pixels_that_arrive_are_the_true_ones(case: str, tmp_path: Path) -> None:
    image, kind, truth = CASES[case]
    training, samples = both(tmp_path, (f"a{FORMATS[kind]}", encoded(image, kind)))
    assert torch.equal(training, samples)
    values = truth.reshape(3, 5, -1)
    if training.shape[1] == 3 and kind in ("WEBP", "GIF"):  # which know no grey
        values = np.broadcast_to(values, (3, 5, 3))
    assert np.array_equal(training[0].permute(1, 2, 0).numpy(), values)


def test_what_is_transparent_in_a_palette_is_laid_on_white(tmp_path: Path) -> None:
    training, samples = both(tmp_path, ("a.png", encoded(PALETTE, transparency=3)))
    assert torch.equal(training, samples)
    colours, is_clear = np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE) == 3
    assert is_clear.any()
    assert np.array_equal(training[0].permute(1, 2, 0).numpy(), np.where(is_clear[..., None], 255, colours))


def test_16_bits_rounded_to_8_equal_a_copy_of_8_bits_and_are_counted(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(encoded(Image.fromarray(GREY.astype(np.uint16) * 257)))
    (pictures / "b.png").write_bytes(encoded(Image.fromarray(GREY)))
    for _ in ("built", "opened"):
        data = load_cached_images(DataConfig(str(pictures), cache_dir=tmp_path / "cache", dtype="uint8"))
        assert torch.equal(data.images[0], data.images[1])
        assert data.remark == "1 image(s) of 16 bits are rounded to 8"
    deep = load_cached_images(DataConfig(str(pictures), cache_dir=tmp_path / "cache", dtype="uint16"))
    assert deep.images.dtype == torch.uint16
    assert torch.equal(deep.images[0], deep.images[1])
    with pytest.raises(ValueError, match=r"row 1 .* of the type uint8, and the first one uint16; give data.dtype"):
        load_cached_images(DataConfig(str(pictures), cache_dir=tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_images_are_turned_upright(kind: str, tmp_path: Path) -> None:
    upright = np.kron(GREY, np.ones((16, 16), dtype=np.uint8))  # JPEG keeps flat blocks nearly
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T}
    turned |= {6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1)}
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
        (tmp_path / f"{orientation}").mkdir()
        training, samples = both(tmp_path / f"{orientation}", ("a.JPG", content))
        assert torch.equal(training, samples)
        assert (training[0, 0].int() - torch.from_numpy(upright.astype(int))).abs().max() <= 3, orientation


def frames(kind: str, **options: Any) -> bytes:
    images = [Image.fromarray(array) for array in (GREY, GREY[::-1].copy(), GREY.T.copy().reshape(3, 5))]
    return encoded(images[0], kind, save_all=True, append_images=images[1:], **options)


BAD: dict[str, tuple[bytes, str]] = {
    **{kind: (frames(kind), "it holds 3 frames; save the one") for kind in ("GIF", "WEBP", "PNG", "TIFF")},
    "truncated PNG": (encoded(Image.fromarray(RGB.repeat(40, 0)))[:-60], "truncated"),
    "truncated JPEG": (encoded(Image.fromarray(RGB.repeat(99, 0).repeat(99, 1)), "JPEG")[:-900], "truncated"),
    "0 bytes": (b"", "it is empty, 0 bytes"),
    "text": (b"no image at all", "cannot identify image file"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "'git lfs pull'"),
    "LAB": (encoded(Image.frombytes("LAB", (5, 3), RGB.tobytes()), "TIFF"), "'LAB', whose range"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_certain_image_is_refused_by_name_and_with_one_reason(case: str, tmp_path: Path) -> None:
    content, reason = BAD[case]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(encoded(Image.fromarray(GREY)))
    (pictures / "b.png").write_bytes(content)
    said = []
    for read in (
        lambda: load_cached_images(DataConfig(str(pictures), cache_dir=tmp_path)),
        lambda: load_images(pictures),
    ):
        with pytest.raises(
            ValueError, match=rf"1 of the 2 images .* row 1 \(b\.png\): .*{re.escape(reason)}"
        ) as caught:
            read()
        said.append(str(caught.value).rpartition("; ")[0])
    assert said[0] == said[1]
    kept = load_cached_images(DataConfig(str(pictures), on_corrupt="skip", cache_dir=tmp_path / "skip"))
    assert len(kept) == 1


def test_decompression_bombs_are_refused_and_other_pictures_of_a_camera_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(Exception, match=r"it has too many pixels; resize it first \(.*15 pixels"):
        decode({"bytes": encoded(Image.fromarray(GREY)), "path": None})
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        camera = encoded(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())])
    assert Image.open(io.BytesIO(camera)).n_frames == 2  # type: ignore[attr-defined]
    assert decode(camera).size == (5, 3)


def test_1_by_1_and_grey_after_colour_and_other_sizes(tmp_path: Path) -> None:
    dot = Image.fromarray(GREY[:1, :1])
    for number, files in enumerate([[dot], [Image.fromarray(RGB), Image.fromarray(GREY)]]):
        (tmp_path / str(number)).mkdir()
        training, samples = both(tmp_path / str(number), *((f"{i}.png", encoded(f)) for i, f in enumerate(files)))
        assert torch.equal(training, samples)
    for number, other in enumerate([Image.fromarray(RGB), Image.fromarray(GREY[:2])]):
        place = tmp_path / f"bad{number}"
        place.mkdir()
        Image.fromarray(GREY).save(place / "a.png")
        other.save(place / "b.png")
        said = (
            r"row 1 \(b.png\) .* (is in colour and the first one is grey|has height and width \(2, 5\) and the first)"
        )
        with pytest.raises(ValueError, match=f"{said}.*; all must have one size, type and colour") as caught:
            load_images(place)
        assert "data." not in str(caught.value)
        with pytest.raises(ValueError, match=f"{said}.*; give data"):
            load_cached_images(DataConfig(str(place), cache_dir=tmp_path / "cache"))


PNGS = [encoded(Image.fromarray(GREY)), encoded(Image.fromarray(GREY[::-1].copy()))]
TRUTH = np.stack([GREY, GREY[::-1]])[:, None]


def column(form: str, folder: Path) -> pa.Array:
    if form == "bytes":
        return pa.array(PNGS)
    if form == "paths":
        for i, content in enumerate(PNGS):
            (folder / f"{i}.png").write_bytes(content)
        return pa.array(["0.png", str(folder / "1.png")])
    if form == "pandas":
        return pa.array([{"bytes": content, "path": "a.png"} for content in PNGS])
    return pa.array(TRUTH[:, 0].tolist(), pa.list_(pa.list_(pa.uint8())))


@pytest.mark.parametrize("form", ["bytes", "paths", "pandas", "lists"])
@pytest.mark.parametrize("name", ["image", "of any name"])
def test_columns_of_any_form_hold_images(form: str, name: str, tmp_path: Path) -> None:
    table = pa.table({name: column(form, tmp_path), "caption": pa.array(["a", "b"])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    if form == "paths" and name != "image":
        with pytest.raises(ValueError, match=r"give data\.image_column where one of them holds paths"):
            load_cached_images(DataConfig(str(path), cache_dir=tmp_path))
    else:
        assert np.array_equal(load_images(path), TRUTH)
        assert np.array_equal(load_cached_images(DataConfig(str(path), cache_dir=tmp_path / "x")).images, TRUTH)
    named = DataConfig(str(path), image_column=name, cache_dir=tmp_path)
    assert np.array_equal(load_cached_images(named).images, TRUTH)


def test_arrays_of_datasets_are_images_and_odd_ones_are_refused(tmp_path: Path) -> None:
    kind = {"picture": datasets.Array3D((3, 5, 3), "uint8")}
    datasets.Dataset.from_dict({"picture": [RGB]}, features=datasets.Features(kind)).to_parquet(tmp_path / "a.parquet")
    assert np.array_equal(load_images(tmp_path / "a.parquet")[0].permute(1, 2, 0), RGB)
    for values in ([[[[1]]]], [[300]], [[-1]], [[0.5]], [[1], [1, 2]], []):
        with pytest.raises(Exception, match=r"it is an array of|its rows have unequal lengths"):
            decode(values)
