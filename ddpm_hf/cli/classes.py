"""Which samples and which reference images are of the same class, for ddpm-hf-evaluate --per_class."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ddpm_hf.cli.compared import Reference, is_hub_id
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.data.sample_labels import Label, load_labels
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.manifest import read_manifest
from ddpm_hf.metrics.table import comparing, fewest_images
from ddpm_hf.sampling.request import classes_of

Members = dict[str, tuple[Tensor, Tensor]]
"""Class -> the rows of its samples, and those of its reference images; int64, in the order of the classes' numbers."""


def members_of(name: str, num_images: int, reference: Reference, config: EvaluateConfig) -> Members:
    """The images of each class.

    Args:
        name: The samples.
        num_images: How many of them are scored, from the first one.
        reference: The real images.
        config: The settings.

    Raises:
        ValueError: samples or reference have no labels, they have other classes, or a class has too few images for the
            metrics.
    """
    if reference.labels is None:
        lacks = "holds only their mean and covariance" if reference.images is None else "has no labels"
        raise ValueError(
            f"per_class needs the class of each reference image, and {config.reference} {lacks}; give images in a "
            "folder for each class, or a data set with a column of labels (--reference_label_column)"
        )
    last = max(reference.labels)
    names = reference.class_names or tuple(map(str, range(last + 1)))
    known = {names[number] for number in set(reference.labels)}
    of_samples = [_named(label, names) for label in _labels_of(name)[:num_images]]
    of_reference = [names[number] for number in reference.labels]
    _check_same(name, set(of_samples), config.reference, known)
    rows = _rows_of(of_samples), _rows_of(of_reference)
    fewest = fewest_images(comparing(config.scored))
    members = {of: (rows[0][of], rows[1][of]) for of in names if of in known}
    for of, both in members.items():
        for source, found in zip((name, config.reference), both, strict=True):
            if len(found) < fewest:
                raise ValueError(
                    f"{source} has {len(found)} image(s) of the class {of!r}, and the metrics need {fewest} of each "
                    "class; give more, or other --metrics"
                )
    return members


def fingerprint_of_members(members: Members) -> str:
    """Changes with the class of any image."""
    digest = hashlib.sha256()
    for of, rows in members.items():
        digest.update(json.dumps([of, *(found.tolist() for found in rows)]).encode())
    return digest.hexdigest()


def _labels_of(name: str) -> Sequence[Label]:
    """The classes of samples, as numbers or names.

    Raises:
        ValueError: nothing says them.
    """
    labels: Sequence[Label] | None
    if is_hub_id(name):
        data = load_cached_images(DataConfig(name=name))
        labels = None if data.labels is None else data.labels.tolist()
        if labels is not None and data.class_names is not None:
            labels = [data.class_names[int(number)] for number in labels]
    else:
        labels = load_labels(Path(name), _of_manifest(Path(name)))
    if labels is None:
        raise ValueError(
            f"per_class needs the class of each sample, and nothing in {name} says it; give images in a folder for "
            "each class, parquet with a column label, an .npz with arr_1 or labels, or what ddpm-hf-sample drew with "
            "--class_labels"
        )
    return labels


def _of_manifest(folder: Path) -> Callable[[str], Label] | None:
    """The class of the image of each seed, of samples that this program drew; None of others.

    Raises:
        ValueError: they were drawn without classes.
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    settings: dict[str, Any] = {} if manifest is None else manifest["settings"]
    if "class_labels" not in settings:
        return None
    if settings["class_labels"] is None:
        raise ValueError(f"per_class needs the class of each sample, and those in {folder} were drawn without classes")
    in_turn = [label for span in classes_of(settings["class_labels"]) for label in span]

    def label_of(path: str) -> Label:
        stem = PurePosixPath(path).stem
        if not stem.isdecimal():
            raise ValueError(f"{folder / path} has no seed in its name, so its class is not known; move it out")
        return in_turn[(int(stem) - int(settings["first_seed"])) % len(in_turn)]

    return label_of


def _named(label: Label, names: Sequence[str]) -> str:
    """The name that the reference has for a class of the samples: that name itself, or else its number."""
    if isinstance(label, str) and (label in names or not label.isdecimal() or str(int(label)) != label):
        return label
    number = int(label)
    return names[number] if 0 <= number < len(names) else f"number {label}"


def _check_same(name: str, of_samples: set[str], reference: str, of_reference: set[str]) -> None:
    """Raise ValueError where a class is in one of the sets only."""
    for has, classes, lacks, others in (
        (name, of_samples, reference, of_reference),
        (reference, of_reference, name, of_samples),
    ):
        if only := sorted(classes - others):
            more = f" and {len(only) - 3} more" if len(only) > 3 else ""
            raise ValueError(
                f"{lacks} has no images of the class(es) {', '.join(map(repr, only[:3]))}{more}, which {has} has; "
                "per_class needs the same classes in both, so give other images, or a --reference_split with these"
            )


def _rows_of(classes: Sequence[str]) -> dict[str, Tensor]:
    rows: dict[str, list[int]] = {}
    for row, of in enumerate(classes):
        rows.setdefault(of, []).append(row)
    return {of: torch.tensor(found) for of, found in rows.items()}
