"""Folders of images: what they hold is read, or counted and named, and changed files are seen."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from ddpm_hf.data import loading
from ddpm_hf.data.folders import classes_of, splits_of
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images, load_image_data
from ddpm_hf.training.report import described_data


def write(folder: Path, *paths: str) -> Path:
    """Flat images, the first of grey level 0, the second of 1, and so on; other files hold text."""
    for level, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith((".png", ".PNG", ".bmp")):
            Image.new("L", (2, 2), level).save(folder / path)
        else:
            (folder / path).write_text("text")
    return folder


def load(folder: object, **settings: Any) -> ImageData:
    return load_cached_images(DataConfig(str(folder), cache_dir=Path(str(folder) + ".cache"), **settings))


def levels(data: ImageData) -> list[int]:
    return [int(image[0, 0, 0]) for image in data.images]


def test_names_of_splits_among_others_are_classes(tmp_path: Path) -> None:
    data = load(write(tmp_path / "pics", "bus/0.png", "bus/1.PNG", "car/0.png", "train/0.png", "train/1.bmp"))
    assert levels(data) == [0, 1, 2, 3, 4]
    assert data.labels is not None
    assert (data.labels.tolist(), data.num_classes) == ([0, 0, 1, 2, 2], 3)
    assert data.remark == "train, among other folders, is taken for a class and not for a split"


@pytest.mark.parametrize("above", ["", "images/"])
def test_folders_that_are_all_called_like_splits_are_these(tmp_path: Path, above: str) -> None:
    names = [f"{above}{name}" for name in ("training/a/0.png", "training/b/1.png", "test/b/0.png", "val/c/3.png")]
    folder = write(tmp_path / "set", *names, "notes.txt")
    data = load(folder)
    assert levels(data) == [0, 1]
    assert data.num_classes == 3  # with that of another split, so that they are numbered alike
    assert data.remark == "not read: 1 image(s) of the split test, 1 image(s) of the split validation, 1 .txt"
    assert levels(load(folder, split="test")) == [2]
    assert levels(load(folder, split="train[1:]+validation")) == [1, 3]
    with pytest.raises(ValueError, match=r"there are the splits \['test', 'train', 'validation'\]"):
        load(folder, split="holdout")


def test_flat_folders_of_splits_have_no_classes(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "train/0.png", "train/1.png", "test/2.png")
    data = load(folder)
    assert (levels(data), data.labels, data.num_classes) == ([0, 1], None, None)
    stream = load_image_data(DataConfig(str(folder), streaming=True))
    assert stream.num_classes is None
    assert stream.batch(0, 2, 0, 2, seed=0)[1] is None


def test_what_the_names_of_folders_mean() -> None:
    assert splits_of(["a/0", "train/0"]) == {"train": ["a/0", "train/0"]}
    assert splits_of(["test/0", "0"]) == {"train": ["test/0", "0"]}
    assert splits_of(["set/train_images/0", "set/test-images/0"]).keys() == {"train", "test"}
    assert splits_of(["crash test/0", "wind test/0"]).keys() == {"train"}
    assert splits_of(["testament/0", "training_wheels.png/0"]).keys() == {"train"}
    assert splits_of([]) == {"train": []}
    assert classes_of(["b/0", "a/0", "b/1"]) == ["b", "a", "b"]
    assert classes_of(["a/0", "a/1"]) is classes_of(["a/0", "b/c/1"]) is classes_of(["0", "1"]) is None


def test_all_that_is_not_read_is_counted_and_named(tmp_path: Path) -> None:
    names = ["a.png", "b.txt", "c.json", "d.csv", ".e.png", "__MACOSX/f.png", "sub/g", "h.zip", "i.tar", "sub/x/j.PNG"]
    folder = write(tmp_path / "set", *names)
    os.mkfifo(folder / "k.png")  # opened, it would wait for a writer for ever
    (folder / "circle").symlink_to(folder)
    data = load(folder)
    assert levels(data) == [0, 9]
    assert data.remark == (
        "not read: 1 .csv, 1 .json, 1 .tar, 1 .txt, 1 .zip, 1 device or pipe, 1 folder in a circle, 2 hidden, "
        "1 without an ending; the folders are not taken for classes, since images lie at different depths"
    )
    assert [int(image[0, 0, 0]) for image in load_images(folder)] == [0, 9]


def test_links_are_followed_and_those_to_nowhere_named(tmp_path: Path) -> None:
    there, folder = write(tmp_path / "there", "0.png", "1.png"), tmp_path / "set"
    folder.mkdir()
    (folder / "a").symlink_to(there)
    (folder / "z.png").symlink_to(there / "1.png")
    assert levels(load(folder)) == [0, 1, 1]
    (folder / "gone.png").symlink_to("nowhere.png")
    for read in (load, load_images):
        with pytest.raises(ValueError, match=r"1 of the 4 images .* row 2 \(gone.png\): there is no such file"):
            read(folder)


@pytest.mark.parametrize("name", ["new\nline.png", "ünï côde.png", "a'b\"c.png", "tab\t.png", "per%20cent#?.png"])
def test_names_of_any_letters_are_read_and_shown_on_one_line(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "set", "a.png", name)
    assert sorted(levels(load(folder))) == [0, 1]
    (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match="it is empty, 0 bytes") as caught:
        load(folder)
    assert str(caught.value).isprintable()


def test_names_that_are_no_text_and_folders_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "set", "a.png", "sub/b.png")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"the name .*\\udcff.png is not UTF-8; rename it"):
        load(folder)
    (folder / os.fsdecode(b"\xff.png")).unlink()
    scan = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"the folder .*sub cannot be read: Permission denied"):
        load(folder)


def test_folders_without_a_clear_set_of_images_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "texts", "a.txt", "b.txt", ".hidden.png")
    for read in (load, load_images):
        with pytest.raises(ValueError, match=r"holds no images, only 2 \.txt, 1 hidden"):
            read(folder)
    phone = write(tmp_path / "phone", "a.HEIC", "b.heic", "c.mov")
    for read in (load, load_images):
        with pytest.raises(ValueError, match=r"holds no images, only 2 \.heic \(save as JPEG\), 1 \.mov"):
            read(phone)
    mixed = write(tmp_path / "mixed", "a.png", "b.png", "sub/extra.parquet")
    for read in (load, load_images):
        with pytest.raises(ValueError, match=r"holds 2 images and 1 table\(s\) \(sub/extra\.parquet\)"):
            read(mixed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.zip", r"a\.zip is no whole zip file \(File is not a zip file\); fetch it again"),
        ("a.tar.gz", r"a\.tar\.gz is no whole tar file \(.*\); fetch it again"),
        ("a.7z", r"it is a packed file \(\.7z\) of a kind that is not read; unpack it"),
        ("a.png", "it is one image; give the folder"),
        ("a.tif", "it is one image; give the folder"),
        ("a.npy", r"a\.npy is no array of numpy"),
        ("a.npz", r"a\.npz is no whole \.npz file"),
        ("a", "it is a file that ends in 'nothing'; give a folder of images, a zip or tar of them, .npy, .npz"),
    ],
)
def test_files_that_are_no_data_set_are_called_what_they_are(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(write(tmp_path, name) / name)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("parts", [False, True])
def test_what_save_to_disk_left_is_read(tmp_path: Path, streaming: bool, parts: bool) -> None:
    columns = {"image": [Image.new("L", (2, 2), i) for i in range(5)], "label": [0, 1, 0, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict(columns, features=features)
    (datasets.DatasetDict(train=data, test=data.select([4])) if parts else data).save_to_disk(tmp_path / "saved")
    found = load_image_data(DataConfig(str(tmp_path / "saved"), streaming=streaming, cache_dir=tmp_path / "cache"))
    images, labels = found.batch(0, 5, 0, 5, seed=0)
    assert labels is not None
    assert sorted(zip(images[:, 0, 0, 0].tolist(), labels.tolist())) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    with pytest.raises(ValueError, match="there are the splits"):
        load(tmp_path / "saved", split="other")
    next((tmp_path / "saved").rglob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(ValueError, match="save_to_disk"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_not_read_beside_tables_is_counted_and_named(tmp_path: Path, streaming: bool) -> None:
    folder = write(tmp_path / "set", "notes.txt", "a.bin", ".git/config", "README.md")
    images = [Image.new("L", (2, 2), i) for i in range(3)]
    table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
    for name in ("train", "test"):
        table.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    data: Any = load_image_data(DataConfig(str(folder), streaming=streaming, cache_dir=tmp_path / "cache"))
    assert data.remark == "not read: 1 file(s) of the split test, 1 .bin, 1 .txt, 1 hidden"
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "saved")
    data = load_image_data(DataConfig(str(tmp_path / "saved"), streaming=streaming, cache_dir=tmp_path / "cache"))
    assert data.remark == "not read: 3 image(s) of the split test"


def described(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    table = datasets.Dataset.from_list(rows)
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[ending](folder / f"metadata.{ending}")
    return folder


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_labels_of_metadata_are_numbers_or_text(tmp_path: Path, ending: str) -> None:
    folder = write(tmp_path / "set", "sub/0.png", "1.png", "2.png", "3.png")
    rows = [("2.png", 7, "dog"), ("sub/0.png", 0, "cat"), ("1.png", 1, "dog")]
    described(folder, ending, [{"file_name": path, "digit": digit, "kind": kind} for path, digit, kind in rows])
    plain, digits, kinds = load(folder), load(folder, label_column="digit"), load(folder, label_column="kind")
    assert levels(plain) == levels(digits) == levels(kinds) == [2, 0, 1]
    assert plain.labels is None
    assert digits.labels is not None
    assert kinds.labels is not None
    assert (digits.labels.tolist(), kinds.labels.tolist(), kinds.num_classes) == ([7, 0, 1], [1, 0, 1], 2)
    assert plain.remark == f"not read: 1 image(s) that metadata.{ending} does not name"
    with pytest.raises(ValueError, match=r"'kind' .* holds text, .* give data.streaming false"):
        load_image_data(DataConfig(str(folder), label_column="kind", streaming=True))


def test_metadata_that_lie_are_refused(tmp_path: Path) -> None:
    for number, (rows, said) in enumerate(
        [
            ([{"file_name": "../secret.png"}], r"names '\.\./secret\.png', which is not in its folder"),
            ([{"file_name": "/etc/secret.png"}], "names '/etc/secret.png', which is not in its folder"),
            ([{"name": "0.png"}], r"has no column file_name with rows, only \['name'\]"),
            ([{"file_name": "9.png"}], r"row 0 \(9\.png\): there is no such file"),
            (
                [{"file_name": "0.png", "kind": "a"}, {"file_name": "1.png", "kind": None}],
                "1 of the 2 rows .* no label",
            ),
        ]
    ):
        folder = described(write(tmp_path / str(number), "0.png", "1.png"), "jsonl", rows)
        with pytest.raises(ValueError, match=said):
            load(folder, label_column="kind" if "kind" in rows[0] else None)
    (folder / "metadata.jsonl").write_bytes(b"{broken")
    with pytest.raises(ValueError, match=r"metadata\.jsonl cannot be read: "):
        load(folder)


def old_streamed_folder(folder: Path) -> list[str]:
    """The order in which datasets streams a folder, as versions before this reading did."""
    stream = datasets.load_dataset(str(folder), split="train", streaming=True)
    stream = stream.cast_column("image", datasets.Image(decode=False))
    shuffled = stream.shuffle(generator=np.random.default_rng([*b"streamed order", 3, 0]), buffer_size=4)
    return [f"{Path(row['image']['path']).relative_to(folder)} {row['label']}" for row in shuffled]


def test_folders_are_read_in_the_order_of_earlier_versions(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set", *(f"{name}/{i}.png" for name in ("b", "a", "a b", "B") for i in (10, 9, 1)), "x.txt"
    )
    theirs = datasets.load_dataset(str(folder), split="train")
    ours = load(folder)
    assert ours.labels is not None
    assert [(image.getpixel((0, 0)), label) for image, label in zip(theirs["image"], theirs["label"])] == [
        *zip(levels(ours), ours.labels.tolist())
    ]
    stream = loading.load(DataConfig(str(folder), streaming=True)).dataset
    shuffled = stream.shuffle(generator=np.random.default_rng([*b"streamed order", 3, 0]), buffer_size=4)
    assert [f"{row['image']} {row['label']}" for row in shuffled] == old_streamed_folder(folder)


def replaced(path: Path, level: int) -> None:
    """Other pixels in a file of the same length and times, as `rsync -t` leaves it."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    if path.suffix == ".png":
        Image.new("L", (2, 2), level).save(path)
        content = bytearray(path.read_bytes())
    path.write_bytes(content)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("form", ["folder", "parquet", "folder of parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_changed_pixels_are_seen_whatever_sizes_and_times_say(tmp_path: Path, form: str, streaming: bool) -> None:
    folder = write(tmp_path / "set", "0.png", "1.png")
    name = {"folder": folder, "parquet": tmp_path / "a.parquet", "folder of parquet": tmp_path / "tables"}[form]

    def tables(levels: list[int]) -> None:
        images = [encoded(level) for level in levels]
        table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
        path = name if form == "parquet" else name / "data.parquet"
        path.parent.mkdir(exist_ok=True)
        before = path.stat() if path.exists() else None
        table.to_parquet(path)
        if before:
            assert path.stat().st_size == before.st_size
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def encoded(level: int) -> dict[str, Any]:
        Image.new("L", (2, 2), level).save(tmp_path / "one.png")
        return {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}

    def read() -> tuple[set[int], str]:
        data = load_image_data(DataConfig(str(name), streaming=streaming, cache_dir=tmp_path / "cache"))
        images, _ = data.batch(0, 2, 0, 2, seed=0)
        return set(images[:, 0, 0, 0].tolist()), data.fingerprint

    if form != "folder":
        tables([0, 1])
    first = read()
    assert read() == first
    if form == "folder":
        replaced(folder / "1.png", 7)
    else:
        tables([0, 7])
    second = read()
    assert (first[0], second[0]) == ({0, 1}, {0, 7})
    assert first[1] != second[1]
    if form == "folder":  # a copy is the same data, and so is the original, set right again
        moved = shutil.copytree(folder, tmp_path / "copy" / "set")
        copy = load_image_data(DataConfig(str(moved), streaming=streaming, cache_dir=tmp_path / "cache"))
        assert copy.fingerprint == second[1]
        replaced(folder / "1.png", 1)
        assert read() == first


def test_a_stream_knows_the_fingerprint_of_earlier_versions(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "a/0.png", "b/1.png")
    config = DataConfig(str(folder), streaming=True)
    stream: Any = load_image_data(config)
    files = datasets.load_dataset_builder(str(folder)).config.data_files
    state = json.dumps(
        [None, "train", *(["train", Path(file).name, Path(file).stat().st_size] for file in files["train"])]
    )
    parts = [loading.hashlib.sha256(state.encode()).hexdigest(), *stream._parts]
    before = loading.hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    assert stream.fingerprint != before
    assert stream.was(before)
    assert not stream.was(stream.fingerprint)
    write(folder, "train/a/0.png")  # of which datasets would read this one alone
    other: Any = load_image_data(config)
    assert not other.was(before)


def test_a_cache_of_datasets_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "datasets")
    with pytest.raises(ValueError, match=r"cannot be kept under .*file/datasets .*; set HF_HOME"):
        load_cached_images(DataConfig("digits", cache_dir=tmp_path / "cache"))


def test_resolutions_that_no_memory_or_disk_holds_are_refused_with_one_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"data.resolution (is 1000000|\d+ or less)"):
            load_image_data(DataConfig(resolution=1_000_000, streaming=streaming, cache_dir=tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"1297 images of 1 x 32 x 32 of 'digits' take .*; give data.resolution 27 or"):
        load_cached_images(DataConfig(resolution=32, cache_dir=tmp_path))
    few = DataConfig(resolution=32, split="train[:10]", cache_dir=tmp_path)
    assert load_cached_images(few).shape == (1, 32, 32)


def test_the_first_lines_of_a_run_say_what_was_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "a/0.png", "b/1.png", "b/2.png", "b/2.txt")
    assert described_data(load(folder)) == f"{folder}: 3 images of 1 x 2 x 2 in 2 classes; not read: 1 .txt"
    stream = load_image_data(DataConfig(str(folder), streaming=True))
    assert described_data(stream) == f"{folder}: images of 1 x 2 x 2 in 2 classes; not read: 1 .txt"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"data\.name is '.*' and must be a file, a folder or the id"):
        DataConfig(name)
