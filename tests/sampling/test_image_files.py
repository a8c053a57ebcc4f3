"""Images on disk: one that is damaged is drawn again, or told."""

from pathlib import Path

import pytest
import torch

from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.pixels import EIGHT_BITS, TORCH, PixelFormat
from ddpm_hf.sampling.image_files import FORMATS, sample_files

SEEDS = range(4)
IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", range(0, 90, 3))
def test_a_png_with_one_wrong_bit_is_missing(tmp_path: Path, place: int) -> None:
    files = sample_files(tmp_path, "png", EIGHT_BITS, 3)
    files.write(SEEDS, IMAGES)
    assert not files.missing(SEEDS).any()
    path = files.path(2)
    content = bytearray(path.read_bytes())
    content[place * len(content) // 90] ^= 4
    path.write_bytes(content)
    assert files.missing(SEEDS).tolist() == [False, False, True, False]


def test_of_thirty_million_seeds_only_folders_that_are_there_are_looked_into(tmp_path: Path) -> None:
    files = sample_files(tmp_path, "png", EIGHT_BITS, 3)
    files.write([2_000_000, 2_000_999], IMAGES[:2])
    missing = files.missing(range(1_999_999, 32_000_000))
    assert missing.nbytes < 31_000_000
    assert (len(missing) - missing.sum(), missing[[1, 1000]].any()) == (2, False)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1], lambda content: content + b"x"])
def test_a_png_of_another_length_is_missing(tmp_path: Path, damage: object) -> None:
    files = sample_files(tmp_path, "png", EIGHT_BITS, 3)
    files.write(SEEDS, IMAGES)
    files.path(1).write_bytes(damage(files.path(1).read_bytes()))  # type: ignore[operator]
    assert files.missing(SEEDS).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet"])
def test_a_file_of_images_with_one_wrong_bit_is_told(tmp_path: Path, kind: str) -> None:
    files = sample_files(tmp_path, kind, EIGHT_BITS, 3)
    files.write(SEEDS, IMAGES)
    files.finish(SEEDS, None)
    assert not files.missing(SEEDS).any()
    assert torch.equal(load_images(tmp_path), IMAGES)
    (path,) = [path for path in tmp_path.rglob("*") if path.suffix in (".npz", ".npy", ".parquet")]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for look in (lambda: files.missing(SEEDS), lambda: load_images(tmp_path)):
        with pytest.raises(ValueError, match="is damaged"):
            look()


FORMS = [
    (format, dtype, channels)
    for format in FORMATS
    for dtype in TORCH
    for channels in (1, 2, 3, 5)
    if format not in ("png", "parquet") or (dtype.startswith("uint") and channels in (1, 3))
]


@pytest.mark.parametrize(("format", "dtype", "channels"), FORMS)
def test_images_of_any_type_and_channels_come_back_as_they_were(
    tmp_path: Path, format: str, dtype: str, channels: int
) -> None:
    drawn = torch.rand(4, channels, 6, 8, generator=torch.Generator().manual_seed(1))
    images = (drawn * {"uint8": 255, "uint16": 65535}.get(dtype, 1)).to(TORCH[dtype])
    pixels = PixelFormat(dtype, (0,), (1,))
    files = sample_files(tmp_path, format, pixels, channels)
    files.write(SEEDS, images)
    assert not files.missing(SEEDS).any()
    if format in ("npz", "npy") and dtype != "uint8":
        path = files.path(3)
        path.write_bytes(path.read_bytes()[:-9])
        assert files.missing(SEEDS).tolist() == [False, False, False, True]
        files.write([3], images[3:])
    files.finish(SEEDS, None)
    assert not files.missing(SEEDS).any()
    found = load_images(tmp_path)
    assert found.dtype == images.dtype
    assert torch.equal(found, images)


def test_what_png_does_not_hold_is_refused_with_what_does(tmp_path: Path) -> None:
    for dtype, channels in (("float32", 1), ("uint8", 5), ("uint16", 2)):
        for format in ("png", "parquet"):
            with pytest.raises(ValueError, match="give --format tiff, npy or npz"):
                sample_files(tmp_path, format, PixelFormat(dtype, (0,), (1,)), channels)
    for channels in (2, 4):
        sample_files(tmp_path, "png", PixelFormat("uint8", (0,), (255,), alpha=True), channels)
