"""Images of any depth and number of channels: the values that arrive are those of the file, or a sentence is."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from ddpm_hf.data import deep_images
from ddpm_hf.data.decoding import decode
from ddpm_hf.data.faults import CorruptImageError
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.pixels import TORCH, PixelFormat

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
LARGEST = {"uint8": 255, "uint16": 65535}


def noise(dtype: str, channels: int, height: int = 3, width: int = 5) -> Array:
    values = RNG.random((height, width, channels))
    return (values * LARGEST[dtype]).astype(dtype) if dtype in LARGEST else (values * 9 - 4).astype(dtype)


def tiff(values: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    is_rgb = options.pop("rgb", False)
    planar = None if values.ndim == 2 else "contig"
    tifffile.imwrite(
        file,
        values,
        photometric="rgb" if is_rgb else "minisblack",
        **{"planarconfig": planar, "metadata": None} | options,
    )
    return file.getvalue()


def load(folder: Path, *contents: bytes, **settings: Any) -> ImageData:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        ending = "png" if content.startswith(b"\x89PNG") else "tif"
        (pictures / f"{number}.{ending}").write_bytes(content)
    return load_cached_images(DataConfig(str(pictures), cache_dir=folder / "cache", **settings))


def arrived(folder: Path, content: bytes, **settings: Any) -> Array:
    """``(H, W, C)``."""
    return load(folder, content, **settings).images[0].permute(1, 2, 0).numpy()


KINDS = [(dtype, channels) for dtype in TORCH for channels in (1, 2, 3, 4, 5, 13)]


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_tiff_of_any_type_and_channels_arrives_as_it_is(tmp_path: Path, dtype: str, channels: int) -> None:
    values = noise(dtype, channels)
    content = tiff(values[..., 0] if channels == 1 else values)
    found = load(tmp_path, content, value_range=None if dtype in LARGEST else (-5.0, 5.0))
    assert found.images.dtype == TORCH[dtype]
    assert np.array_equal(found.images[0].permute(1, 2, 0).numpy(), values)
    samples = load_images(tmp_path / "pictures")
    assert torch.equal(samples, found.images)


def test_the_same_values_in_every_layout_of_a_tiff(tmp_path: Path) -> None:
    values = noise("uint16", 3, 20, 24)
    forms: list[dict[str, Any]] = [
        {"rgb": True},
        {"rgb": True, "compression": "zlib"},
        {"rgb": True, "compression": "lzw"},
        {"rgb": True, "byteorder": ">"},
        {"rgb": True, "bigtiff": True},
        {"rgb": True, "bigtiff": True, "byteorder": ">"},
        {"rgb": True, "tile": (16, 16)},
        {"rgb": True, "compression": "zlib", "predictor": True},
    ]
    for number, form in enumerate(forms):
        assert np.array_equal(arrived(tmp_path / f"{number}", tiff(values, **form)), values), form
    planar = tiff(np.moveaxis(values, -1, 0).copy(), rgb=True, planarconfig="separate")
    assert np.array_equal(arrived(tmp_path / "planar", planar), values)
    grey = values[..., :1]
    file = io.BytesIO()
    tifffile.imwrite(file, 65535 - grey[..., 0], photometric="miniswhite")
    assert np.array_equal(arrived(tmp_path / "white", file.getvalue()), grey)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    for number in [*range(10), "planar", "white"]:
        (tmp_path / f"{number}").mkdir()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright_like_others(tmp_path: Path, orientation: int) -> None:
    eight = noise("uint8", 3)
    deep = eight.astype(np.uint16) * 257
    tag = [(274, 3, 1, orientation, True)]
    ours = arrived(tmp_path / "1", tiff(deep, rgb=True, extratags=tag))
    pils = arrived(tmp_path / "2", tiff(eight, rgb=True, extratags=tag))
    assert np.array_equal(ours, pils.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = np.asarray(decode(io_png(eight, exif)).planes[0])
    assert np.array_equal(turned, pils)


def io_png(values: Array, exif: Image.Exif) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_16_bits_arrives_whole_or_rounded_on_demand(tmp_path: Path, channels: int) -> None:
    values = noise("uint16", channels)
    content = imagecodecs.png_encode(values[..., 0] if channels == 1 else values)
    assert np.array_equal(arrived(tmp_path, content), values)
    rounded = arrived(tmp_path, content, dtype="uint8")
    assert rounded.dtype == np.uint8
    assert np.abs(rounded - values / 257.0).max() <= 1


def test_opacity_of_16_bits_is_laid_on_the_background_kept_or_dropped(tmp_path: Path) -> None:
    values = noise("uint16", 4)
    content = imagecodecs.png_encode(values)
    share = values[..., 3:] / 65535
    on_white = np.round(values[..., :3] * share + 65535 * (1 - share))
    assert np.array_equal(arrived(tmp_path, content), on_white)
    found = load(tmp_path, content, background="#ff0000")
    red = np.round(values[..., :3] * share + np.array([65535, 0, 0]) * (1 - share))
    assert np.array_equal(found.images[0].permute(1, 2, 0).numpy(), red)
    assert found.remark == "1 image(s) with transparency are laid on #ff0000 (data.alpha)"
    assert np.array_equal(arrived(tmp_path, content, alpha="drop"), values[..., :3])
    kept = load(tmp_path, content, alpha="channel")
    assert np.array_equal(kept.images[0].permute(1, 2, 0).numpy(), values)
    assert kept.format == PixelFormat("uint16", (0,), (65535,), alpha=True)
    assert kept.remark == "1 image(s) with transparency keep opacity as their last channel (data.alpha)"


def png(values: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(file, "PNG", **options)
    return file.getvalue()


def test_opacity_of_8_bits_as_a_channel_and_images_without_it(tmp_path: Path) -> None:
    clear, opaque = noise("uint8", 4), noise("uint8", 3)
    found = load(tmp_path, png(clear), png(opaque), alpha="channel")
    assert found.shape == (4, 3, 5)
    assert np.array_equal(found.images[0].permute(1, 2, 0).numpy(), clear)
    assert np.array_equal(found.images[1].permute(1, 2, 0).numpy(), np.dstack([opaque, np.full((3, 5), 255)]))
    with pytest.raises(ValueError, match=r"row 0 .* has 3 channels, and data.channels is 5; give null to keep the 3"):
        load(tmp_path / "1", png(opaque), alpha="channel", channels=5)
    with pytest.raises(ValueError, match=r"row 1 .* is transparent in places, and there is no channel for it; give"):
        load(tmp_path / "2", png(opaque), png(clear), alpha="channel")


def test_a_tiff_of_rgb_and_a_fourth_band_keeps_it_and_one_with_opacity_does_not_show_it(tmp_path: Path) -> None:
    values = noise("uint8", 4)
    near_infrared = tiff(values, rgb=True, extrasamples=["unspecified"])
    assert np.array_equal(arrived(tmp_path / "1", near_infrared), values)
    opacity = tiff(values, rgb=True, extrasamples=["unassalpha"])
    share = values[..., 3:] / 255
    on_white = np.round(values[..., :3] * share + 255 * (1 - share))
    assert np.abs(arrived(tmp_path / "2", opacity).astype(int) - on_white).max() <= 1
    deep = values.astype(np.uint16) * 257
    assert np.array_equal(
        arrived(tmp_path / "3", tiff(deep, rgb=True, extrasamples=["unassalpha"]), alpha="channel"), deep
    )


def test_an_icc_profile_changes_no_value(tmp_path: Path) -> None:
    values = noise("uint8", 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert np.array_equal(arrived(tmp_path, png(values, icc_profile=profile)), values)


def test_108_megapixels_are_read_without_a_word(tmp_path: Path) -> None:
    """In a process of its own: pytest changes what becomes of warnings."""
    Image.new("1", (12_000, 9_000), 1).save(tmp_path / "large.png")
    code = (
        "import sys; from ddpm_hf.data.decoding import decode; from ddpm_hf.data.transform import Transform;"
        "pixels = Transform(resolution=8)(decode(open(sys.argv[1], 'rb').read()));"
        "print(tuple(pixels.shape), bool((pixels == 255).all()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(1, 8, 8) True\n", "")


@pytest.mark.parametrize("dtype", TORCH)
def test_deep_images_are_resized_as_floating_point_is(tmp_path: Path, dtype: str) -> None:
    values = noise(dtype, 2, 12, 18)
    found = load(tmp_path, tiff(values), resolution=(4, 8), value_range=(-5.0, 5.0))
    cut = values[1:10]  # 9 x 18 has the shape of 4 x 8
    for channel in range(2):
        plane = Image.fromarray(cut[..., channel].astype(np.float32))
        expected = np.asarray(plane.resize((8, 4), Image.Resampling.LANCZOS))
        if dtype in LARGEST:
            expected = expected.round().clip(0, LARGEST[dtype])
        got = found.images[0, channel].numpy()
        assert np.abs(got.astype(np.float64) - expected).max() <= (1 if dtype == "uint8" else 4e-3)


def test_the_range_of_values_is_that_of_the_type_the_settings_or_the_data(tmp_path: Path) -> None:
    values = np.linspace(-3, 7, 10_000, dtype=np.float32).reshape(100, 100)
    both = np.dstack([values, 10 * values])
    with pytest.raises(ValueError, match=r"hold float32 values from -30 to 70, which have no range .* or percentile"):
        load(tmp_path, tiff(both))
    assert load(tmp_path, tiff(both), value_range=(-3.0, 7.0)).format == PixelFormat("float32", (-3.0,), (7.0,))
    for _ in ("measured", "kept"):
        form = load(tmp_path, tiff(both), value_range="percentile").format
        assert np.allclose(form.low, [-2.99, -29.9], atol=1e-3)
        assert np.allclose(form.high, [6.99, 69.9], atol=1e-3)
    deep = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    form = load(tmp_path / "1", tiff(deep), value_range="percentile").format
    assert np.allclose([*form.low, *form.high], [9.5, 9989.5], atol=0.5)
    assert load(tmp_path / "1", tiff(deep)).format == PixelFormat("uint16", (0,), (65535,))


BAD: dict[str, tuple[bytes, str]] = {
    "NaN": (tiff(np.array([[1, np.nan]], dtype=np.float32)), "1 of its 2 values are not finite"),
    "large": (tiff(np.array([[2**31]], dtype=np.uint32)), "whole numbers beyond 16,777,216 are not kept exactly"),
    "complex": (tiff(np.ones((2, 2), dtype=np.complex64)), "expected numbers"),
    "pages": (tiff(np.ones((3, 2, 2), dtype=np.float32), planarconfig=None), "frames"),
    "cut": (tiff(noise("uint16", 3, 40, 40), rgb=True)[:-900], "failed to read 9600 bytes, got 8700"),
}


@pytest.mark.parametrize("case", [case for case in BAD if case != "pages"])
def test_what_has_no_certain_values_is_refused(case: str) -> None:
    content, said = BAD[case]
    with pytest.raises(CorruptImageError, match=re.escape(said)):
        decode(content)


@pytest.mark.parametrize("form", ["a PNG of 16 bits", "a TIFF compressed as LZW"])
def test_what_needs_another_package_names_its_command(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise("uint16", 3)
    monkeypatch.setattr(deep_images, "find_spec", lambda name: None)
    if "LZW" in form:
        content = tiff(values, rgb=True, compression="lzw")

        def lacks(page: Any) -> None:
            raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

        monkeypatch.setattr(tifffile.TiffPage, "asarray", lacks)
    else:
        content = imagecodecs.png_encode(values)
    with pytest.raises(CorruptImageError, match=rf"it is {form}.* pip install 'ddpm-hf\[deep\]'"):
        decode(content)


def test_arrays_of_other_numbers_become_floats_where_these_are_exact() -> None:
    for dtype in ("int8", "int16", "int32", "float64", ">u2", "bool"):
        values = np.array([[1, 0], [0, 1]], dtype=dtype)
        found = decode(values)
        expected = {">u2": "uint16", "bool": "uint8"}.get(dtype, "float32")
        assert found.dtype == expected
        assert np.array_equal(np.asarray(found.planes[0]), values.astype(float) * (255 if dtype == "bool" else 1))
