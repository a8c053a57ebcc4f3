"""The images that ddpm-hf-evaluate compares: samples, the reference and held-out ones, and whether they fit."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.data.sample_labels import load_labels
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.data.value_range import format_of_type, percentiles
from ddpm_hf.files import sha256_of
from ddpm_hf.manifest import read_manifest
from ddpm_hf.metrics.reference import FeatureExtraction, Statistics
from ddpm_hf.metrics.table import METRICS, fewest_images
from ddpm_hf.pixels import LARGEST, PixelFormat
from ddpm_hf.settings import renamed

SINCE = (
    *("reference_label_column", "reference_layout", "reference_alpha", "reference_background", "reference_dtype"),
    "reference_value_range",
)
"""Settings that earlier manifests lack, and that new ones have where they are not as usual."""


@dataclass(frozen=True)
class Reference:
    """Real images: those that the samples are compared with, or held-out ones.

    Args:
        settings: What it was made from.
        format: What the numbers of the images mean.
        images: ``(M, C, H, W)``, of the type of the format; None of a file of statistics.
        fingerprint: Changes with the images.
        statistics: Mean and covariance of a file; None where there are images.
        labels: The number of the class of each image; None where nothing says it.
        class_names: What the classes are called, by their numbers; None where they have no names.
    """

    settings: dict[str, Any]
    format: PixelFormat
    images: Tensor | None = None
    fingerprint: str = ""
    statistics: Statistics | None = None
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] | None = None


def load_samples(name: str, config: EvaluateConfig) -> Tensor:
    """Generated images ``(N, C, H, W)``, of the type that they were saved in.

    Raises:
        ValueError: they cannot be read, or are too few.
    """
    images = load_cached_images(DataConfig(name=name)).images if is_hub_id(name) else load_images(Path(name))
    wanted = config.num_images or max(len(images), fewest_images(config.scored))
    if len(images) < wanted:
        raise ValueError(f"{name} holds {len(images)} images, and {wanted} are wanted; draw more")
    return images[:wanted]


def is_hub_id(name: str) -> bool:
    """Whether samples are a data set on the Hub."""
    return name.count("/") == 1 and not Path(name).exists() and not Path(name).suffix


def format_of_samples(names: Sequence[str]) -> PixelFormat | None:
    """What the manifests of samples say of their numbers; None where none says anything.

    Raises:
        ValueError: they say different things.
    """
    found: dict[PixelFormat, str] = {}
    for name in names:
        manifest = read_manifest(Path(name)) if Path(name).is_dir() else None
        if manifest is not None and (pixels := manifest["settings"].get("pixels")):
            found.setdefault(PixelFormat.from_dict(pixels), name)
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise ValueError(
            f"{first} holds {one} and {second} {other}; samples in different ranges of values cannot be compared"
        )
    return next(iter(found), None)


def in_range_of(format: PixelFormat | None, data: DataConfig) -> DataConfig:
    """A data set in the range of values of some samples, unless the user gave it another one."""
    if format is None or format.is_plain or data.value_range is not None:
        return data
    return replace(data, value_range=(min(format.low), max(format.high)))


def load_reference(config: EvaluateConfig, sets: Mapping[str, Tensor], show_progress: bool) -> Reference:
    """The real images, or what a file says of them.

    Args:
        config: The settings.
        sets: The samples; where there are only statistics, their type says what their numbers mean.
        show_progress: Tell how far the decoding is.

    Raises:
        ValueError: they cannot be read, are too few, or are not enough for the metrics.
    """
    path, known = Path(config.reference), format_of_samples(list(sets))
    statistics = Statistics.load(path) if path.suffix == ".npz" else None
    if statistics is not None:
        if config.has_held_out:
            raise ValueError(
                f"held-out images are compared with the training images themselves, and {config.reference} holds only "
                "the mean and covariance of some; give the images as --reference"
            )
        name, images = next(iter(sets.items()))
        settings = {"name": config.reference, "sha256": sha256_of(path)}
        return Reference(settings, known or _whole_range(name, images), statistics=statistics)
    reference = _load_real(config, in_range_of(known, config.reference_data()), show_progress, "reference")
    if known is not None and config.reference_value_range is None and reference.format.dtype == known.dtype:
        reference = replace(reference, format=known)  # with a range for each channel, where the training had one
    assert reference.images is not None
    if len(reference.images) < fewest_images(config.scored):
        raise ValueError(
            f"{config.reference} holds {len(reference.images)} images, and the metrics need "
            f"{fewest_images(config.scored)}"
        )
    return reference


def load_held_out(config: EvaluateConfig, reference: Reference, show_progress: bool) -> Reference:
    """Real images that were not trained on.

    Raises:
        ValueError: they cannot be read, or do not go with the reference.
    """
    of_reference = config.held_out_data()
    # Percentiles are those of the reference.
    data = in_range_of(reference.format, replace(of_reference, value_range=None))
    held_out = _load_real(config, data, show_progress, "held_out")
    if held_out.fingerprint == reference.fingerprint:
        raise ValueError(
            f"the held-out images are those of the reference, {config.reference}; give others by --held_out_split or "
            "--held_out"
        )
    if held_out.format.dtype == reference.format.dtype:
        held_out = replace(held_out, format=reference.format)
    images = held_out.images
    assert images is not None
    assert reference.images is not None
    shapes = tuple(images.shape[1:]), tuple(reference.images.shape[1:])
    if shapes[0] != shapes[1] or held_out.format != reference.format:
        raise ValueError(
            f"the held-out images are {held_out.format.dtype} of {shapes[0]} and {config.reference} holds "
            f"{reference.format.dtype} ones of {shapes[1]} (channels, height, width); give images of the same form"
        )
    if len(images) < fewest_images(config.scored):
        raise ValueError(
            f"there are {len(images)} held-out images, and the metrics need {fewest_images(config.scored)}"
        )
    settings = {"name": data.name, "split": data.split, "fingerprint": held_out.fingerprint}
    return replace(held_out, settings={**settings, "num_images": len(images)})


def _load_real(config: EvaluateConfig, data: DataConfig, show_progress: bool, setting: str) -> Reference:
    path = Path(data.name)
    labels, class_names = None, None
    if path.suffix == ".npz" and _is_of_adm(path):
        images, fingerprint = load_images(path), sha256_of(path)
        if config.per_class and (found := load_labels(path)) is not None:
            labels = [int(label) for label in found]
        with renamed({"data.value_range": "--reference_value_range"}):
            format = _format_of_array(data, images)
    else:
        loaded = load_data(data, show_progress, setting)
        images, fingerprint, format = loaded.images, loaded.fingerprint, loaded.format
        labels, class_names = None if loaded.labels is None else loaded.labels.tolist(), loaded.class_names
    settings = described_reference(config, fingerprint, len(images))
    return Reference(settings, format, images, fingerprint, labels=labels, class_names=class_names)


def _is_of_adm(path: Path) -> bool:
    """Whether a file holds one set of images ``(N, H, W, C)`` as ADM's do; others can have splits."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return "arr_0" in file
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def _format_of_array(data: DataConfig, images: Tensor) -> PixelFormat:
    if data.value_range == "percentile":
        low, high = percentiles(images)
        return PixelFormat(_type_of(images), tuple(low), tuple(high))
    return format_of_type(data, data.name, _type_of(images), images.shape[1], images)


def _whole_range(name: str, images: Tensor) -> PixelFormat:
    """All values of the type of images that come with no other range.

    Raises:
        ValueError: the type has no range of its own.
    """
    dtype = _type_of(images)
    if dtype not in LARGEST:
        raise ValueError(
            f"{name} has {dtype} images, and nothing says which range of values they have; give a --reference of images"
        )
    return PixelFormat.whole(dtype)


def _type_of(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


def load_data(data: DataConfig, show_progress: bool, setting: str = "reference") -> ImageData:
    """The images of a data set.

    Args:
        data: Settings of it, which this command knows by other names.
        show_progress: Tell how far the decoding is.
        setting: The setting of this command that names the data set.

    Raises:
        ValueError: they cannot be loaded; with this command's settings.
    """
    names = {field.name: f"--reference_{field.name}" for field in fields(DataConfig)}
    names |= {"name": f"--{setting}", "split": f"--{setting}_split"}
    with renamed({f"data.{name}": own for name, own in names.items()}):
        return load_cached_images(data, show_progress)


def notes_on_held_out(held_out: Tensor, reference: Reference, sets: Mapping[str, Tensor]) -> list[str]:
    """What makes the comparison with held-out images less than it seems."""
    assert reference.images is not None
    notes = [
        f"{name} has {len(images)} images and the held-out ones are {len(held_out)}, so their scores differ by that too"
        for name, images in sets.items()
        if len(images) != len(held_out)
    ]
    known = {_hash_of(image) for image in reference.images}
    both = sum(_hash_of(image) in known for image in held_out)
    return [*notes, *([f"{both} of the {len(held_out)} held-out images are in the reference too"] if both else [])]


def _hash_of(image: Tensor) -> bytes:
    return xxhash.xxh3_128_digest(image.contiguous().numpy().data)


def check_together(
    config: EvaluateConfig, name: str, images: Tensor, reference: Reference, features_of: FeatureExtraction
) -> None:
    """Refuse at once what would fail or mislead after hours."""
    shape = tuple(images.shape[1:])
    if _type_of(images) != reference.format.dtype:
        raise ValueError(
            f"{name} has {_type_of(images)} images and {config.reference} {reference.format.dtype} ones; compare "
            "images of one type: --reference_dtype uint8 rounds those of 16 bits"
        )
    if reference.images is not None and tuple(reference.images.shape[1:]) != shape:
        size = shape[2] if shape[1] == shape[2] else f"[{shape[1]},{shape[2]}]"
        raise ValueError(
            f"{name} has images of {shape} and {config.reference} of {tuple(reference.images.shape[1:])} (channels, "
            f"height, width); give --reference_resolution {size} --reference_channels {shape[0]}, or other samples"
        )
    features_of.intake.check(features_of.extractor, shape[0])
    one = features_of.of(images[:1])
    if any(METRICS[name].needs_class_scores for name in config.metrics):
        features_of.extractor.check_classes()
    if reference.statistics is not None:
        for metric in config.metrics:
            if METRICS[metric].reference == "images":
                raise ValueError(
                    f"the metric {metric!r} needs the images of the reference, and {config.reference} holds only their "
                    "mean and covariance; give the images, or --metrics fid"
                )
        if config.save_statistics is not None:
            raise ValueError(f"save_statistics is for a reference of images, and {config.reference} holds statistics")
        reference.statistics.check(Path(config.reference), features_of, shape, one.shape[1])


def described_samples(name: str, images: Tensor, fingerprint: str) -> dict[str, Any]:
    """What the manifest says of a set of samples; of those that ddpm-hf-sample drew, all that its manifest says."""
    manifest = read_manifest(Path(name)) if Path(name).is_dir() else None
    made_from = {} if manifest is None else {"made_from": manifest["settings"]}
    return {"fingerprint": fingerprint, "num_images": len(images), **made_from}


def described_reference(config: EvaluateConfig, fingerprint: str, num_images: int) -> dict[str, Any]:
    usual = {field.name: field.default for field in fields(EvaluateConfig)}
    transform = {
        name: value
        for name, value in vars(config).items()
        if name.startswith("reference_") and not (name in SINCE and value == usual[name])
    }
    # As earlier manifests have it; whether null has cut anything, the fingerprint knows.
    transform["reference_center_crop"] = config.reference_center_crop or False
    return {"name": config.reference, **transform, "fingerprint": fingerprint, "num_images": num_images}
