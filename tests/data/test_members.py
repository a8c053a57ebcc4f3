"""Files that hold many images: their rules are those of folders, and what is wrong with one is said in a sentence."""

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

import numpy as np
import pytest
import tifffile

from ddpm_hf.data import archives
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images, load_image_data
from tests.data.packing import Array, encoded, in_folder, npy, npz, png, tarred, write, zipped

GREY = np.random.default_rng(0).integers(256, size=(6, 8, 9), dtype=np.uint8)


def load(path: Path, **settings: Any) -> ImageData:
    return load_cached_images(DataConfig(str(path), cache_dir=path.with_name("cache"), **settings))


def flat(level: int) -> bytes:
    return png(np.full((2, 2), level, dtype=np.uint8))


def levels(data: ImageData) -> list[int]:
    return [int(image[0, 0, 0]) for image in data.images]


def files(*paths: str) -> dict[str, bytes]:
    """Flat images of grey levels 0, 1, ...; other files hold text."""
    return {path: flat(i) if path.lower().endswith(".png") else b"text" for i, path in enumerate(paths)}


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


def test_deep_and_floating_arrays_keep_their_values(tmp_path: Path) -> None:
    deep = np.random.default_rng(2).integers(2**16, size=(6, 8, 9, 5), dtype=np.uint16)
    data = load(write(tmp_path / "a.npy", npy(deep.transpose(0, 3, 1, 2))))
    assert np.array_equal(data.images.numpy().transpose(0, 2, 3, 1), deep)
    floats = np.random.default_rng(3).random((6, 8, 9), dtype=np.float32)
    for form in (floats, floats.astype(np.float64), floats.astype(">f4")):
        data = load(write(tmp_path / "b.npy", npy(form)), value_range=(0.0, 1.0))
        assert np.array_equal(data.images[:, 0].numpy(), floats)


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


def test_flat_folders_of_splits_have_no_classes(tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "set", files("train/0.png", "train/1.png", "test/2.png"))
    data = load(folder)
    assert (levels(data), data.labels, data.num_classes) == ([0, 1], None, None)
    stream = load_image_data(DataConfig(str(folder), streaming=True))
    assert stream.num_classes is None
    assert stream.batch(0, 2, 0, 2, seed=0)[1] is None
