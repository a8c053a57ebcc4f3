"""Images on disk: one that is damaged is drawn again, or told."""

from pathlib import Path

import pytest
import torch

from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.sampling.image_files import sample_files

SEEDS = range(4)
IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", range(0, 90, 3))
def test_a_png_with_one_wrong_bit_is_missing(tmp_path: Path, place: int) -> None:
    files = sample_files(tmp_path, "png")
    files.write(SEEDS, IMAGES)
    assert not files.missing(SEEDS).any()
    path = files.path(2)
    content = bytearray(path.read_bytes())
    content[place * len(content) // 90] ^= 4
    path.write_bytes(content)
    assert files.missing(SEEDS).tolist() == [False, False, True, False]


def test_of_thirty_million_seeds_only_folders_that_are_there_are_looked_into(tmp_path: Path) -> None:
    files = sample_files(tmp_path, "png")
    files.write([2_000_000, 2_000_999], IMAGES[:2])
    missing = files.missing(range(1_999_999, 32_000_000))
    assert missing.nbytes < 31_000_000
    assert (len(missing) - missing.sum(), missing[[1, 1000]].any()) == (2, False)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1], lambda content: content + b"x"])
def test_a_png_of_another_length_is_missing(tmp_path: Path, damage: object) -> None:
    files = sample_files(tmp_path, "png")
    files.write(SEEDS, IMAGES)
    files.path(1).write_bytes(damage(files.path(1).read_bytes()))  # type: ignore[operator]
    assert files.missing(SEEDS).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_file_of_images_with_one_wrong_bit_is_told(tmp_path: Path, kind: str) -> None:
    files = sample_files(tmp_path, kind)
    files.write(SEEDS, IMAGES)
    files.finish(SEEDS, None)
    assert not files.missing(SEEDS).any()
    assert torch.equal(load_images(tmp_path), IMAGES)
    (path,) = [path for path in tmp_path.rglob("*") if path.suffix in (".npz", ".parquet")]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for look in (lambda: files.missing(SEEDS), lambda: load_images(tmp_path)):
        with pytest.raises(ValueError, match="is damaged"):
            look()
