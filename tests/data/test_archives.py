"""Archives: their rules are those of folders, and what is wrong with one is said in a sentence."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddpm_hf.data import archives
from tests.data.packing import files, flat, in_folder, levels, load, tarred, write, zipped


def encrypted(path: Path) -> Path:
    """A zip whose members are marked as encrypted, in both of its lists."""
    content = bytearray(zipped(path, files("a.png", "b.png")).read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + place] |= 1
    return write(path, bytes(content))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_follows_the_rules_of_a_folder(tmp_path: Path, kind: str) -> None:
    pack: Callable[..., Path] = zipped if kind == "zip" else tarred
    names = [
        "pics/bus/0.png",
        "pics/bus/1.PNG",
        "pics/car/0.png",
        "pics/train/0.png",
        "pics/a.txt",
        "__MACOSX/pics/bus/._0.png",
    ]
    data = load(pack(tmp_path / f"a.{kind}", files(*names, "pics/old.zip", ".DS_Store")))
    assert levels(data) == [0, 1, 2, 3]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 2]
    assert data.remark == (
        "not read: 1 .txt, 1 .zip, 2 hidden; train, among other folders, is taken for a class and not for a split"
    )
    path = pack(tmp_path / f"b.{kind}", files("set/test/a/0.png", "set/train/b/0.png", "set/train/a/1.png"))
    data = load(path)
    assert levels(data) == [2, 1]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    assert data.remark == "not read: 1 image(s) of the split test"
    assert levels(load(path, split="test")) == [0]
    described = {**files("sub/0.png", "1.png", "2.png"), "metadata.csv": b"file_name,kind\n2.png,dog\nsub/0.png,cat\n"}
    data = load(pack(tmp_path / f"c.{kind}", described), label_column="kind")
    assert levels(data) == [2, 0]
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0]
    assert data.remark == f"not read: 1 image(s) that c.{kind}::metadata.csv does not name"


def test_a_folder_of_archives_reads_each_as_a_folder_of_its_name_and_parts_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    zipped(folder / "train.zip", files("cat/0.png", "dog/1.png"))
    zipped(folder / "test.zip", files("cat/0.png"))
    data = load(folder)
    assert levels(data) == [0, 1]
    assert data.num_classes == 2
    assert data.remark == "not read: 1 image(s) of the split test"
    parts = tmp_path / "parts"
    for i in range(3):
        tarred(parts / f"images_{i:03}.tar.gz", {f"images/{i}.png": flat(i)}, gzip.compress)
    write(parts / "notes.txt", b"text")
    data = load(parts)
    assert levels(data) == [0, 1, 2]
    assert data.labels is None
    assert data.remark == "not read: 1 .txt"
    both = in_folder(tmp_path / "both", files("a.png"))
    zipped(both / "more.zip", files("b.png"))
    assert load(both).remark == "not read: 1 .zip"


def test_names_of_windows_links_and_copies_in_archives(tmp_path: Path) -> None:
    data = load(zipped(tmp_path / "a.zip", files("cat\\0.png", "dog\\1.png")))
    assert (levels(data), data.num_classes) == ([0, 1], 2)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        warnings.simplefilter("ignore")
        file.writestr("a.png", flat(0))
        file.writestr("a.png", flat(7))
    data = load(tmp_path / "b.zip")
    assert (levels(data), data.remark) == ([7], "not read: 1 earlier file of the same name")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        info = tarfile.TarInfo("set/a.png")
        info.size = len(flat(3))
        tar.addfile(info, io.BytesIO(flat(3)))
        for name, kind, target in (
            ("set/b.png", tarfile.LNKTYPE, "set/a.png"),
            ("set/sub/c.png", tarfile.SYMTYPE, "../b.png"),
            ("set/d.png", tarfile.SYMTYPE, "nowhere.png"),
            ("set/e.png", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    data = load(tmp_path / "c.tar")
    assert levels(data) == [3, 3, 3]
    assert data.remark.startswith("not read: 1 device or pipe, 1 link to nowhere")


def whole(kind: str = "zip") -> bytes:
    """An archive of two images, stored as they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole"
        return (
            zipped(path, files("a.png", "b.png"), 0) if kind == "zip" else tarred(path, files("a.png", "b.png"))
        ).read_bytes()


def swollen() -> bytes:
    """A zip that says of its second file that it is larger than 2 GiB."""
    content = bytearray(whole())
    place = content.find(b"PK\1\2", content.find(b"PK\1\2") + 1) + 24
    content[place : place + 4] = struct.pack("<I", 2**31 + 1)
    return bytes(content)


BAD: dict[str, tuple[Any, str]] = {
    "e.zip": (encrypted, r"e\.zip is encrypted \(2 of its 2 files\); unpack it with its"),
    "cut.zip": (whole()[:-30], r"cut\.zip is no whole zip file \(.*\); fetch it again"),
    "empty.zip": (b"", r"empty\.zip is no whole zip file"),
    "checksum.zip": (
        whole().replace(flat(1), flat(1)[:-1] + b"?"),
        r"row 1 \(checksum\.zip::b\.png\): its bytes in the zip",
    ),
    "swollen.zip": (swollen(), r"row 1 \(swollen\.zip::b\.png\): it has 2\.0 GiB, unpacked; no image does"),
    "cut.tar": (whole("tar")[:700], r"cut\.tar is no whole tar file \(.*\); fetch it again"),
    "endless.tar": (
        whole("tar")[:2048],
        r"endless\.tar is no whole tar file \(it is cut off or damaged at byte 2,048\)",
    ),
    "garbled.tar": (
        whole("tar").replace(b"b.png", b"c.png"),
        r"garbled\.tar is no whole tar file \(it is cut off or dam",
    ),
    "two.tar": (whole("tar") * 2, r"two\.tar goes on after its end, as tar files that were put together with cat do"),
    "cut.tar.gz": (gzip.compress(whole("tar"))[:-20], r"cut\.tar\.gz is no whole tar file \(Compressed file ended"),
    "cut.tar.xz": (lzma.compress(whole("tar"))[:-20], r"cut\.tar\.xz is no whole tar file"),
    "cut.tar.bz2": (bz2.compress(whole("tar"))[:20] + b"garbage" * 9, r"cut\.tar\.bz2 is no whole tar file"),
    "a.7z": (b"7z", r"a packed file \(\.7z\) of a kind that is not read; unpack it"),
    "absolute.zip": (files("/etc/a.png"), r"absolute\.zip holds the name '/etc/a\.png', which would lie outside of it"),
    "above.tar": (files("a/../../b.png"), r"above\.tar holds the name .* lie outside of it"),
    "above.zip": (files("..\\b.png"), r"above\.zip holds the name .* outside of it"),
    "drive.zip": (files("C:\\b.png"), r"drive\.zip holds the name .* outside of it"),
    "letters.tar": ({"\udcff.png": flat(0)}, r"letters\.tar holds the name .*, which is not UTF-8; rename it"),
    "texts.zip": (files("a.txt", "b.rar"), r"the archive holds no images, only 1 \.rar, 1 \.txt"),
    "tables.zip": (files("a.png", "b.parquet"), r"holds 1 images and 1 table\(s\) \(tables\.zip::b\.parquet\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_archives_that_are_damaged_or_dangerous_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path = tmp_path / "inner" / name
    if isinstance(content, dict):
        (zipped if path.suffix == ".zip" else tarred)(path, content)
    else:
        content(path) if callable(content) else write(path, content)
    with pytest.raises(ValueError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert {file.name for file in tmp_path.rglob("*") if file.suffix == ".png"} == set()


@pytest.mark.parametrize("setting", ["config", "revision"])
def test_a_file_has_no_configurations_or_revisions(tmp_path: Path, setting: str) -> None:
    path = zipped(tmp_path / "a.zip", files("a.png"))
    with pytest.raises(ValueError, match=rf"data\.{setting} is x and must be null, as .*a\.zip is on this machine"):
        load(path, **{setting: "x"})


def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tarred(tmp_path / "a.tar.gz", files("0.png", "1.png"), gzip.compress)
    assert levels(load(path)) == [0, 1]
    monkeypatch.setattr(archives.shutil, "copyfileobj", lambda *_: pytest.fail("unpacked again"))
    assert levels(load(path)) == [0, 1]


def test_a_changed_archive_is_read_again(tmp_path: Path) -> None:
    first = load(zipped(tmp_path / "a.zip", files("0.png", "1.png")))
    second = load(zipped(tmp_path / "a.zip", {**files("0.png"), "1.png": flat(9)}))
    assert (levels(first), levels(second)) == ([0, 1], [0, 9])


def test_damaged_images_of_archives_and_arrays_can_be_skipped(tmp_path: Path) -> None:
    content = {**files("a.png", "c.png"), "b.png": flat(9)[:40]}
    data = load(tarred(tmp_path / "a.tar", content), on_corrupt="skip")
    assert levels(data) == [0, 1]


SHARD = {"0.png": flat(5), "0.cls": b"3", "1.png": flat(6), "1.cls": b"0", "1.txt": b"words"}


def test_labels_of_shards_are_numbers_or_words_and_one_image_of_a_key_is_chosen(tmp_path: Path) -> None:
    data = load(tarred(tmp_path / "a.tar", SHARD))
    assert data.labels is not None
    assert (levels(data), data.labels.tolist(), data.num_classes) == ([5, 6], [3, 0], 4)
    assert data.remark == "not read: 1 .txt"
    pairs = {"0.in.png": flat(1), "0.out.png": flat(2), "0.json": b'{"label": "x", "kind": "y", "n": [1]}'}
    path = tarred(tmp_path / "b.tar", pairs)
    with pytest.raises(ValueError, match=r"keys have several images, in\.png, out\.png; give data\.image_column"):
        load(path)
    data = load(path, image_column="out.png", label_column="kind")
    assert data.labels is not None
    assert (levels(data), data.labels.tolist(), data.num_classes) == ([2], [0], 1)
    assert data.remark == "not read: 1 .in.png, 1 .json"
    with pytest.raises(ValueError, match=r"'n' of 0\.json is \[1\], and no class"):
        load(path, image_column="out.png", label_column="n")
    missing = tarred(tmp_path / "c.tar", {**SHARD, "2.png": flat(7)})
    with pytest.raises(ValueError, match=r"1 of the 3 rows .* have no label"):
        load(missing)
