"""Images of every form and folders of every shape: what arrives is what was drawn, in training and as samples."""

import io
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_image_data
from tests.fuzz.outcomes import Fault, Refused, outcome_of
from tests.fuzz.rounds import Check, Target

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F")
ENDINGS = {
    "png": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "webp": "WEBP",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "gif": "GIF",
}


@dataclass(frozen=True)
class Picture:
    """A file with an image."""

    mode: str
    ending: str
    is_upper: bool
    size: tuple[int, int]
    turned: int
    frames: int
    cut: float
    seed: int

    def content(self) -> bytes | None:
        """Its bytes; None where PIL cannot write this mode in this format."""
        rng = np.random.default_rng(self.seed)
        width, height = self.size
        if self.mode == "I;16":
            image = Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
        elif self.mode in ("I", "F"):
            image = Image.fromarray(
                rng.integers(0, 2**16, (height, width)).astype(np.int32 if self.mode == "I" else np.float32)
            )
        else:
            colours = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image = colours.convert("RGB" if self.mode in ("LAB", "HSV") else self.mode)
        file = io.BytesIO()
        options: dict[str, Any] = {}
        if self.turned > 1:
            exif = Image.Exif()
            exif[0x0112] = self.turned
            options["exif"] = exif
        if self.frames > 1 and self.ending in ("gif", "webp", "png", "tif", "tiff"):
            options |= {
                "save_all": True,
                "append_images": [image.rotate(90, expand=False) for _ in range(self.frames - 1)],
            }
        if self.ending == "webp":
            options["lossless"] = True
        try:
            image.save(file, ENDINGS[self.ending], **options)
        except (OSError, ValueError, KeyError, SystemError):
            return None
        content = file.getvalue()
        return content[: int(self.cut * len(content))]

    @property
    def name(self) -> str:
        return f"picture.{self.ending.upper() if self.is_upper else self.ending}"


pictures = st.builds(
    Picture,
    mode=st.sampled_from(MODES),
    ending=st.sampled_from(sorted(ENDINGS)),
    is_upper=st.booleans(),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    turned=st.sampled_from([0, 0, 0, *range(1, 10)]),
    frames=st.sampled_from([1, 1, 1, 2, 3]),
    cut=st.sampled_from([1.0, 1.0, 1.0, 0.0, 0.5, 0.9]),
    seed=st.integers(0, 3),
)


def as_training(folder: Path, channels: int | None = None) -> Any:
    """All images of a folder as training reads them, uint8 (N, C, H, W), or the sentence that refused them."""

    def read() -> Any:
        config = DataConfig(name=str(folder), channels=channels, cache_dir=folder.parent / "cache")  # type: ignore[arg-type]
        data: Any = load_image_data(config, False)
        return np.asarray(data.images[: len(data)])

    return outcome_of(read)


def as_samples(folder: Path) -> Any:
    """All images of a folder as samples to be scored, or the sentence that refused them."""
    return outcome_of(lambda: np.asarray(load_images(folder)))


def _images(folder: Path) -> Check:
    def check(picture: Picture) -> None:
        content = picture.content()
        if content is None:
            return
        place = folder / "pictures"
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        place.mkdir()
        (place / picture.name).write_bytes(content)
        turned = picture.turned if picture.ending not in ("bmp", "gif") else 0  # which know no EXIF
        beside = replace(picture, ending="png", cut=1.0, frames=1, turned=turned)
        (place / "z.png").write_bytes(beside.content() or content)
        training, samples = as_training(place), as_samples(place)
        if isinstance(training, Refused) and "no range of their own" in training.sentence:
            return  # floating point, which is scored as it is and trained on in a range
        if isinstance(training, Refused) != isinstance(samples, Refused):
            raise Fault("silent difference", f"training {_told(training)}, scoring {_told(samples)}")
        if isinstance(training, Refused):
            is_of_two_sizes = "has height and width" in training.sentence
            if picture.mode in ("L", "RGB") and picture.cut == 1 and picture.frames == 1 and not is_of_two_sizes:
                raise Fault("silent difference", f"an ordinary picture is refused: {training.sentence}")
            return
        if not np.array_equal(training, samples):
            raise Fault("silent difference", "training and scoring read other pixels")
        _compare_with_truth(picture, content, training)

    return check


def _told(found: Any) -> str:
    return f"refuses ({found.sentence})" if isinstance(found, Refused) else f"reads {found.shape}"


def _compare_with_truth(picture: Picture, content: bytes, found: Any) -> None:
    """The pixels of plain modes are known by numpy alone."""
    if picture.mode not in ("L", "RGB", "I;16", "1") or picture.ending in ("jpg", "jpeg") or picture.cut < 1:
        return
    rng = np.random.default_rng(picture.seed)
    width, height = picture.size
    with Image.open(io.BytesIO(content)) as opened:
        turned = opened.getexif().get(0x0112, 1)
        if picture.mode == "I;16":
            truth = rng.integers(0, 2**16, (height, width), dtype=np.uint16).astype(float)[None]
        else:
            opened.load()  # which turns a TIFF
            turned = opened.getexif().get(0x0112, 1)
            plain = opened.convert("RGB" if picture.mode == "RGB" else "L")
            truth = np.atleast_3d(np.asarray(plain, float)).transpose(2, 0, 1)
    if picture.ending == "gif" and picture.mode == "RGB":
        return  # a palette of 256 colours
    if picture.ending in ("gif", "webp") and picture.mode == "I;16":
        return  # PIL writes the values above 255 as 255
    if turned in (3, 4):
        truth = truth[:, ::-1, ::-1]
    if turned in (2, 4):
        truth = truth[:, :, ::-1]
    if turned in (5, 6, 7, 8):
        truth = {
            5: truth.transpose(0, 2, 1),
            6: np.rot90(truth, -1, (1, 2)),
            7: truth.transpose(0, 2, 1)[:, ::-1, ::-1],
            8: np.rot90(truth, 1, (1, 2)),
        }[turned]
    first = found[0]
    if first.shape != truth.shape and first.shape[0] == 3 and truth.shape[0] == 1:
        truth = np.repeat(truth, 3, 0)
    if first.shape != truth.shape or np.abs(first - truth).max() > 1:
        raise Fault("silent difference", f"{picture.mode} as {picture.ending}, EXIF {turned}: other pixels than drawn")


# Folders

NAMES = ("train", "test", "val", "validation", "a", "b", "cat", "data", "images", ".hidden", "ünï", "x y", "0", "1")
KINDS = ("png", "png", "png", "JPG", "webp", "txt", "json", "csv", "parquet", "broken.png", "link", "bin", "")
trees = st.dictionaries(
    st.tuples(
        st.lists(st.sampled_from(NAMES), max_size=2).map(tuple),
        st.sampled_from(["0", "1", "2", "img", ".dot", "metadata", "labels", "a b", "é"]),
        st.sampled_from(KINDS),
    ),
    st.integers(0, 250),
    min_size=1,
    max_size=8,
)


def _folders(folder: Path) -> Check:
    def check(tree: dict[tuple[tuple[str, ...], str, str], int]) -> None:
        place = folder / "tree"
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        place.mkdir()
        greys = []
        for (parents, name, kind), grey in tree.items():
            path = place.joinpath(*parents, f"{name}.{kind}" if kind else name)
            if any(parent.is_file() for parent in path.parents) or path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind in ("png", "JPG", "webp"):
                image, options = Image.new("L", (8, 8), grey), {"lossless": True} if kind == "webp" else {}
                image.save(path, {"png": "PNG", "JPG": "JPEG", "webp": "WEBP"}[kind], **options)
                is_hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
                greys += [] if is_hidden else [grey]
            elif kind == "link":
                path.symlink_to("nowhere.png")
            else:
                path.write_bytes(b"{}" if kind == "json" else b"text")
        found = as_training(place, channels=1)
        if isinstance(found, Refused):
            return
        read = sorted(int(image[0, 0, 0]) for image in found)
        known = list(greys)
        for grey in read:
            nearest = min(known, key=lambda other: abs(other - grey), default=-9)
            if abs(nearest - grey) > 1:
                raise Fault("silent difference", f"an image that nobody put there: {grey}, of {greys}")
            known.remove(nearest)
        # Those of other splits are not read, and said to be left out.
        told = sum(
            map(
                int,
                re.findall(
                    r"(\d+) image\(s\)",
                    load_image_data(DataConfig(str(place), channels=1, cache_dir=folder / "cache")).remark,
                ),
            )
        )
        broken = sum(kind == "broken.png" for _, _, kind in tree)  # in another split, counted by its name
        if not len(known) <= told <= len(known) + broken:
            raise Fault("silent difference", f"{len(known)} of {len(greys)} images are left out, and said to be {told}")

    return check


TARGETS = {
    "images": Target(pictures, _images),
    "folders": Target(trees, _folders, per_round=50),
}
