"""ddpm-hf-evaluate: what cannot be scored, read or written is one sentence, and nothing that was computed is lost."""

import errno
import io
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.images import to_pil
from tests.cli.scored import fakes, refusal, start, statistics, write

WITHOUT_INCEPTION = pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="it would be downloaded")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("samples") / "png", fakes())


def half_a_png(folder: Path) -> Path:
    write(folder, fakes(10))
    content = io.BytesIO()
    to_pil(fakes(1))[0].save(content, "PNG")
    (folder / "000000" / "000005.png").write_bytes(content.getvalue()[:50])
    return folder


def mixed_sizes(folder: Path) -> Path:
    write(folder, fakes(10))
    Image.new("L", (9, 8)).save(folder / "000000" / "zz.png")
    return folder


def grey_and_colour(folder: Path) -> Path:
    write(folder, fakes(10))
    Image.new("RGB", (8, 8)).save(folder / "000000" / "zz.png")
    return folder


def in_colour(folder: Path) -> Path:
    return write(folder, fakes(10).expand(-1, 3, -1, -1))


def not_numbers(folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "x.npz", arr_0=np.full((9, 8, 8, 1), np.nan))
    return folder / "x.npz"


def several_arrays(folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "x.npz", real=np.zeros((9, 8, 8, 1), np.uint8), drawn=np.zeros((9, 8, 8, 1), np.uint8))
    return folder / "x.npz"


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (empty, "holds no images; expected images, or a zip, tar, .npz, .npy or parquet of them"),
        (lambda folder: folder / "nowhere", "is no file or folder of images"),
        (mixed_sizes, "zz.png) of"),
        (grey_and_colour, "is in colour and the first one is grey; all must have one size, type and colour"),
        (half_a_png, "row 5 (000000/000005.png): image file is truncated; repair them, or take them out"),
        (lambda folder: write(folder, fakes(3)), "holds 3 images, and 4 are wanted"),
        (in_colour, "has images of (3, 8, 8) and digits of (1, 8, 8)"),
        (not_numbers, "9 of the 9 images of"),
        (several_arrays, "x.npz holds several arrays of images, real, drawn"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_samples_that_cannot_be_scored_are_one_sentence(
    tmp_path: Path, make: Callable[[Path], Path], sentence: str
) -> None:
    assert sentence in refusal(tmp_path / "scores", "--samples", make(tmp_path / "samples"))
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"extractor_sha256": np.array("0" * 64)}, "is of the extractor with the SHA-256 000000000000..., and digits"),
        ({"image_shape": np.array((3, 32, 32))}, "is of images of (3, 32, 32), and the samples are (1, 8, 8)"),
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "has 2048 features an image, and digits 64"),
        ({"mu": np.zeros(63)}, "holds mu of (63,) and sigma of (64, 64)"),
        ({"mu": np.full(64, np.nan)}, "holds numbers that are not finite"),
        ({"mu": np.array([object()])}, "cannot be read as an .npz of arrays"),
    ],
)
def test_statistics_of_something_else_are_one_sentence(
    samples: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    file = statistics(tmp_path, **changes)
    said = refusal(tmp_path / "scores", "--samples", samples, "--metrics", "fid", "--reference", file)
    assert sentence in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metrics", "fdi"], "metrics"),
        (["--metrics"], "metrics is empty"),
        (["--num_images", 3], "num_images is 3, and the metrics need at least 4"),
        (["--num_images", 61], "holds 60 images, and 61 are wanted"),
        (["--compare", "a", "b"], "either by --samples ONE or by --compare SEVERAL"),
        (
            ["--reference_split", "validation"],
            "(see --reference: a file, a folder or a Hub id, with a token in HF_TOKEN",
        ),
        (["--reference_resolution", 16], "give --reference_resolution 8 --reference_channels 1"),
        (["--reference_split", "train[:3]"], "digits holds 3 images, and the metrics need 4"),
        (["--extractor", "nothing"], "the extractor 'nothing' is not one of digits, pixels, inception"),
        pytest.param(["--extractor", "inception"], "run 'pip install ddpm-hf[inception]'", marks=WITHOUT_INCEPTION),
        (["--bootstrap", 1], "bootstrap is 1 and must be 0 or at least 2"),
        (["--save_statistics", "x.json"], "must end with .npz"),
        (["--reference", "{statistics}"], "the metric 'precision_recall' needs the images of the reference"),
        (["--output", "/proc/scores"], "/proc/scores"),
    ],
)
def test_wrong_settings_are_one_sentence(samples: Path, tmp_path: Path, arguments: list[object], sentence: str) -> None:
    given = [str(argument).format(statistics=statistics(tmp_path / "reference")) for argument in arguments]
    assert sentence in refusal(tmp_path / "scores", "--samples", samples, *given)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written_is_one_sentence(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refusal(tmp_path / "locked" / "scores", "--samples", samples)


def a_full_disk_for_pictures() -> None:
    from ddpm_hf.cli import scoring

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scoring.save_png = full


def a_full_disk() -> None:
    from ddpm_hf.cli import scoring

    a_full_disk_for_pictures()
    scoring.write_json = scoring.write_text = scoring.save_png


def test_what_cannot_be_written_beside_the_scores_is_named(samples: Path, tmp_path: Path) -> None:
    output, statistics = tmp_path / "scores", tmp_path / "new" / "folder" / "statistics.npz"
    run = start(
        output,
        "--samples",
        samples,
        "--save_statistics",
        statistics,
        "--metrics",
        "fid",
        fault=a_full_disk_for_pictures,
    )
    assert run.wait() == [1], run.said()
    assert f"{output / 'nearest.png'} could not be written (No space left on device)" in run.said()
    found = json.loads((output / "metrics.json").read_text())["scores"]["fid"][str(samples)]
    assert f"| {found:.4g} ±" in run.said()
    assert statistics.exists()


def test_scores_that_cannot_be_written_are_printed(samples: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "scores", "--samples", samples, "--metrics", "fid", "--bootstrap", 0, fault=a_full_disk)
    assert run.wait() == [1], run.said()
    assert f"| {samples} | 60 | " in run.said()
    for name in ("metrics.json", "table.md", "nearest.png"):
        assert f"{tmp_path / 'scores' / name} could not be written (No space left on device)" in run.said()


def test_a_place_for_statistics_that_cannot_be_is_refused_first(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    for place, said in (
        ("file/statistics.npz", "as {}/file is no folder"),
        ("folder.npz", "is a folder and must be a"),
    ):
        asked = ["--samples", samples, "--save_statistics", tmp_path / place]
        assert said.format(tmp_path) in refusal(tmp_path / "scores", *asked)
    assert not (tmp_path / "scores").exists()
