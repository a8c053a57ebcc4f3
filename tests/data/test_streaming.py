"""Streamed images: the same samples on any number of processes, resumed or not."""

import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from ddpm_hf.data import rows as row_reader
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageSource, load_cached_images, load_image_data
from tests.data.test_sources import make_images, write_folder, write_parquet

N = 23
BATCH = 6


@pytest.fixture(params=["parquet", "several files", "folder"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """23 images of 6 x 6 in two classes, or 24 in the folder."""
    if request.param == "folder":
        return str(write_folder(tmp_path / "set", (N + 1) // 2))
    images = make_images("RGB", [(6, 6)] * N)
    parts = [(0, N)] if request.param == "parquet" else [(0, 5), (5, 16), (16, N)]
    for start, stop in parts:
        labels = (datasets.ClassLabel(names=["cat", "dog"]), [i % 2 for i in range(start, stop)])
        write_parquet(tmp_path / f"part-{start}.parquet", images[start:stop], label=labels)
    return str(tmp_path / "part-*.parquet")


def stream(name: str, **settings: Any) -> ImageSource:
    return load_image_data(DataConfig(name=name, streaming=True, **{"shuffle_buffer": 10, **settings}))


def samples(source: ImageSource, steps: range, shares: int = 1, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The global batch of each step, put together from shares that are asked for one after the other."""
    cuts = [BATCH * i // shares for i in range(shares + 1)]
    batches = []
    for step in steps:
        parts = [source.batch(step, BATCH, *cut, seed) for cut in pairwise(cuts)]
        batches.append((torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])))
    return batches


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def test_each_pass_sees_each_image_of_the_cached_set_once_in_an_order_of_its_own(name: str) -> None:
    cached, source = load_cached_images(DataConfig(name=name)), stream(name)
    assert (source.shape, source.num_classes) == (cached.shape, cached.num_classes) == ((3, 6, 6), 2)
    assert cached.labels is not None
    content = Counter((image.numpy().tobytes(), int(label)) for image, label in zip(cached.images, cached.labels))
    batches = samples(source, range(3 * len(cached) // BATCH))
    row = [(image.numpy().tobytes(), int(label)) for images, labels in batches for image, label in zip(images, labels)]
    first, second = row[: len(cached)], row[len(cached) : 2 * len(cached)]
    assert Counter(first) == Counter(second) == content
    assert first != second
    assert sum(a == b for a, b in zip(first, zip(cached.images, cached.labels))) < len(cached)


@pytest.mark.parametrize("shares", [2, 3])
def test_the_global_batch_is_the_same_on_any_number_of_processes(name: str, shares: int) -> None:
    whole = samples(stream(name), range(9))
    assert same(samples(stream(name), range(9), shares), whole)  # of one process, as in accumulation
    cuts = [BATCH * i // shares for i in range(shares + 1)]
    for start, stop in pairwise(cuts):  # each of its own process
        source = stream(name)
        for step, (images, labels) in enumerate(whole):
            part = source.batch(step, BATCH, start, stop, 0)
            assert same([part], [(images[start:stop], labels[start:stop])])  # type: ignore[list-item]


@pytest.mark.parametrize("step", [1, 3, 4, 11, 19])
def test_a_resumed_run_sees_what_the_unbroken_one_sees(name: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = samples(stream(name), range(20))
    resumed = stream(name)
    decoded: list[object] = []
    decode = row_reader.decode
    monkeypatch.setattr(row_reader, "decode", lambda *content: (decoded.append(content), decode(*content))[1])
    assert same(samples(resumed, range(step, 20)), unbroken[step:])
    assert len(decoded) == BATCH * (20 - step)  # what was skipped was not decoded


def test_a_step_behind_and_another_seed_are_read_anew(name: str) -> None:
    source = stream(name)
    whole = samples(source, range(12))
    for step in (2, 1, 7, 7, 0, 11):
        assert same(samples(source, range(step, step + 1)), whole[step : step + 1])
    other = samples(source, range(12), seed=1)
    assert not same(other, whole)
    assert same(other, samples(stream(name), range(12), seed=1))
    assert same(samples(source, range(5, 12)), whole[5:])


def corrupt(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).write_bytes(b"no image")
    return folder


def test_a_corrupt_image_is_replaced_by_the_next_of_its_global_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = stream(str(write_folder(tmp_path / "clean", 6)))
    folder = str(corrupt(write_folder(tmp_path / "set", 6), ("cat/0.png", "cat/3.png", "dog/5.png")))
    bad = {image.numpy().tobytes() for image in load_cached_images(DataConfig(name=str(tmp_path / "clean"))).images}
    left = load_cached_images(DataConfig(name=folder, on_corrupt="skip")).images
    bad -= {image.numpy().tobytes() for image in left}
    assert len(bad) == 3

    caplog.clear()
    whole = samples(stream(folder, on_corrupt="skip"), range(6))
    with caplog.at_level(logging.WARNING):
        assert same(samples(stream(folder, on_corrupt="skip"), range(6), shares=3), whole)
    assert "cat/0.png) of" in caplog.text
    for (images, labels), (clean_images, clean_labels) in zip(whole, samples(clean, range(6)), strict=True):
        readable = [image.numpy().tobytes() not in bad for image in clean_images]
        for i in range(BATCH):
            source = next(j % BATCH for j in range(i, i + BATCH) if readable[j % BATCH])
            assert torch.equal(images[i], clean_images[source])
            assert labels[i] == clean_labels[source]
    with pytest.raises(
        ValueError, match=r"the image in sample . of step . .*png\) of .* cannot be decoded: .*on_corrupt"
    ):
        samples(stream(folder), range(2))


def test_without_a_readable_image_there_is_no_stream(tmp_path: Path) -> None:
    folder = corrupt(write_folder(tmp_path / "set", 1), ("cat/0.png", "dog/0.png"))
    with pytest.raises(ValueError, match="has no image that can be decoded"):
        stream(str(folder), on_corrupt="skip")


def test_settings_that_a_stream_cannot_serve_are_refused(tmp_path: Path) -> None:
    images = make_images("L", [(4, 4), (4, 4), (4, 5)])
    path = str(write_parquet(tmp_path / "a.parquet", images, rank=(datasets.Value("int64"), [0, 1, 2])))
    with pytest.raises(ValueError, match=r"'rank' .* holds plain integers, .* give data.streaming false"):
        stream(path, label_column="rank")
    with pytest.raises(
        ValueError, match=r"sample \d of step 0 .* has height and width \(4, 5\) and the first one \(4, 4\)"
    ):
        stream(path).batch(0, 3, 0, 3, 0)
    assert stream(path).batch(0, 2, 0, 0 + 1, 0)[1] is None
    with pytest.raises(ValueError, match="a stream has no slices"):
        stream("digits", split="train[:100]")


def test_the_fingerprint_follows_files_and_transform_and_not_where_they_are(tmp_path: Path) -> None:
    here, there = (str(write_folder(tmp_path / place / "set", 2)) for place in ("here", "there"))
    assert stream(here).fingerprint == stream(there).fingerprint
    others = [stream(here, resolution=3), stream(here, shuffle_buffer=5), stream("digits")]
    assert len({stream(here).fingerprint, *(other.fingerprint for other in others)}) == 4
