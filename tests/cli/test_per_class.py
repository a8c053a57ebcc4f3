"""ddpm-hf-evaluate --per_class: where the classes of images come from, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.cli import evaluate, sample
from ddpm_hf.cli.classes import fingerprint_of_members, members_of
from ddpm_hf.cli.compared import Reference, load_reference
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.images import save_png, to_pil
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, precision_recall
from ddpm_hf.pixels import EIGHT_BITS
from ddpm_hf.sampling.image_files import sample_files
from tests.runs import Started

DIGITS = load_cached_images(DataConfig(split="test[:150]"))
IMAGES, LABELS = DIGITS.images[:60], DIGITS.labels[:60] % 3  # type: ignore[index]
"""Whatever they show, these are the classes of most tests."""
CONFIG = EvaluateConfig("real", Path("scores"), samples="drawn", per_class=True, metrics=["fid"])


def reference_of(labels: list[int] | None, names: tuple[str, ...] | None = None) -> Reference:
    return Reference({}, EIGHT_BITS, DIGITS.images, labels=labels, class_names=names)


THREE = reference_of([0, 1, 2] * 20, ("cat", "dog", "eel"))


def in_folders(folder: Path, names: tuple[str, ...] = ("cat", "dog", "eel")) -> Path:
    for i, (image, label) in enumerate(zip(to_pil(IMAGES), LABELS.tolist(), strict=True)):
        save_png(image, folder / names[label] / f"{i:03d}.png")
    return folder


def classes_in(source: Path, reference: Reference = THREE, config: EvaluateConfig = CONFIG) -> dict[str, Any]:
    """Class -> the images of the source that are of it."""
    images = load_images(source)
    members = members_of(str(source), len(images), reference, config)
    assert all(torch.equal(reals, torch.arange(of, 60, 3)) for of, (_, reals) in enumerate(members.values()))
    return {name: images[fakes] for name, (fakes, _) in members.items()}


def as_bytes(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


def check(found: dict[str, Any]) -> None:
    assert list(found) == ["cat", "dog", "eel"]
    for number, images in enumerate(found.values()):
        assert as_bytes(images) == as_bytes(IMAGES[number == LABELS])


def test_classes_are_folders_by_name_or_by_number(tmp_path: Path) -> None:
    check(classes_in(in_folders(tmp_path / "names")))
    check(classes_in(in_folders(tmp_path / "numbers", ("0", "1", "2"))))


@pytest.mark.parametrize("name", ["arr_1", "labels"])
def test_classes_are_the_integers_of_an_npz(tmp_path: Path, name: str) -> None:
    arrays = {"arr_0": IMAGES.permute(0, 2, 3, 1).numpy(), name: LABELS.numpy()}
    np.savez(tmp_path / "drawn.npz", **arrays)
    check(classes_in(tmp_path / "drawn.npz"))


def test_classes_are_the_column_of_a_table(tmp_path: Path) -> None:
    paths = sorted(in_folders(tmp_path / "png").rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    of_text = [path.parent.name for path in paths]
    kinds = {
        "text": (of_text, datasets.Value("string")),
        "declared": (of_text, datasets.ClassLabel(names=["eel", "cat", "dog"])),  # in an order of their own
        "numbers": ([["cat", "dog", "eel"].index(name) for name in of_text], datasets.Value("int64")),
    }
    for name, (labels, kind) in kinds.items():
        table = datasets.Dataset.from_dict(
            {"image": images, "label": labels}, datasets.Features({"image": datasets.Image(), "label": kind})
        )
        table.to_parquet(tmp_path / f"{name}.parquet")
        check(classes_in(tmp_path / f"{name}.parquet"))


@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_classes_are_in_the_files_that_the_command_writes(tmp_path: Path, format: str) -> None:
    files = sample_files(tmp_path, format, EIGHT_BITS, 1)
    files.write(range(7, 67), IMAGES)
    files.finish(range(7, 67), LABELS)
    check(classes_in(tmp_path))


def test_classes_of_single_images_are_in_the_manifest_of_the_command(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "num_class_embeds": 3}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **kinds)
    DDPMCustomPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "model")
    few = ["--model", tmp_path / "model", "--num_images", 12, "--seed", 5, "--num_inference_steps", 10, "--threads", 1]
    drawing = Started([*few, "--class_labels", "2,0-1"], tmp_path / "drawn", main=sample.main)
    assert drawing.wait() == [0], drawing.said()
    members = members_of(str(tmp_path / "drawn"), 12, THREE, CONFIG)
    assert {name: rows.tolist() for name, (rows, _) in members.items()} == {
        "cat": [1, 4, 7, 10],
        "dog": [2, 5, 8, 11],
        "eel": [0, 3, 6, 9],
    }
    manifest = tmp_path / "drawn" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["settings"]["class_labels"] = None
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="were drawn without classes"):
        members_of(str(tmp_path / "drawn"), 12, THREE, CONFIG)


def test_a_reference_without_names_has_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "drawn.npz", arr_0=IMAGES.permute(0, 2, 3, 1).numpy(), arr_1=LABELS.numpy())
    assert list(classes_in(tmp_path / "drawn.npz", reference_of([0, 1, 2] * 20))) == ["0", "1", "2"]


def test_the_reference_may_be_a_file_of_arrays_or_name_its_column(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", arr_0=IMAGES.permute(0, 2, 3, 1).numpy(), arr_1=LABELS.numpy())
    config = replace(CONFIG, reference=str(tmp_path / "real.npz"))
    assert load_reference(config, {}, show_progress=False).labels == LABELS.tolist()
    images = [
        {"bytes": path.read_bytes(), "path": None} for path in sorted(in_folders(tmp_path / "png").rglob("*.png"))
    ]
    kinds = datasets.Features({"image": datasets.Image(), "kind": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": images, "kind": [1, 0] * 30}, kinds)
    table.to_parquet(tmp_path / "real.parquet")
    config = replace(CONFIG, reference=str(tmp_path / "real.parquet"))
    assert load_reference(config, {}, show_progress=False).labels is None
    config = replace(config, reference_label_column="kind")
    assert load_reference(config, {}, show_progress=False).labels == [1, 0] * 30


def test_the_manifest_changes_with_the_class_of_an_image() -> None:
    one = {"cat": (torch.tensor([0, 1]), torch.tensor([0])), "dog": (torch.tensor([2]), torch.tensor([1]))}
    other = {"cat": (torch.tensor([0, 2]), torch.tensor([0])), "dog": (torch.tensor([1]), torch.tensor([1]))}
    assert fingerprint_of_members(one) != fingerprint_of_members(other)


@pytest.mark.parametrize(
    ("labels", "reference", "sentence"),
    [
        (None, THREE, "nothing in .* says it; give images in a folder for each class"),
        (
            LABELS,
            reference_of(None),
            "real has no labels; give images in a folder for each class, or a data set",
        ),
        (LABELS, Reference({}, EIGHT_BITS), "real holds only their mean and covariance"),
        (LABELS + 1, THREE, r"real has no images of the class\(es\) 'number 3', which .*drawn.npz has"),
        (LABELS % 2, THREE, r"drawn.npz has no images of the class\(es\) 'eel', which real has"),
        (LABELS, reference_of([0, 1] * 29 + [2]), r"real has 1 image\(s\) of the class '2', and the metrics need 2 of"),
    ],
)
def test_classes_that_cannot_be_are_one_sentence(
    tmp_path: Path, labels: torch.Tensor | None, reference: Reference, sentence: str
) -> None:
    beside = {} if labels is None else {"arr_1": labels.numpy()}
    np.savez(tmp_path / "drawn.npz", arr_0=IMAGES.permute(0, 2, 3, 1).numpy(), **beside)
    with pytest.raises(ValueError, match=sentence) as error:
        members_of(str(tmp_path / "drawn.npz"), 60, reference, CONFIG)
    assert "\n" not in str(error.value)


def test_images_of_which_some_have_no_label_are_one_sentence(tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": None} for path in in_folders(tmp_path / "png").rglob("*.png")]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    labels = [None, None, *[0] * 58]
    datasets.Dataset.from_dict({"image": images, "label": labels}, kinds).to_parquet(tmp_path / "drawn.parquet")
    with pytest.raises(ValueError, match=r"2 of the 60 images in .*drawn.parquet have no label"):
        members_of(str(tmp_path / "drawn.parquet"), 60, THREE, CONFIG)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metrics": ["is"]}, "per_class is true, and none of the metrics compares images with those of the reference"),
        ({"samples": None, "model": "m", "metrics": ["bits_per_dim"]}, "per_class is true, and none of the metrics"),
        ({"per_class": False, "reference_label_column": "kind"}, "reference_label_column is 'kind' and is for"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CONFIG, **changes)


def results(output: Path, *arguments: object, processes: int = 1) -> dict[str, Any]:
    usual = ["--reference", "digits", "--reference_split", "train[:300]", "--extractor", "digits", "--threads", 1]
    run = Started([*usual, *arguments], output, processes, main=evaluate.main)
    assert run.wait() == [0] * processes, run.said()
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def test_the_command_scores_each_class_alone_on_two_processes_as_on_one(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.npz"
    assert DIGITS.labels is not None
    np.savez(drawn, arr_0=DIGITS.images.permute(0, 2, 3, 1).numpy(), arr_1=DIGITS.labels.numpy())
    common = ["--samples", drawn, "--bootstrap", 2]
    plain = results(tmp_path / "plain", *common, "--cache_dir", tmp_path / "a")
    one = results(tmp_path / "one", *common, "--per_class", "true", "--cache_dir", tmp_path / "a")
    two = results(tmp_path / "two", *common, "--per_class", "true", "--cache_dir", tmp_path / "b", processes=2)
    assert one == two
    assert {name: value for name, value in one.items() if name != "per_class"} == plain
    found = one["per_class"][str(drawn)]
    network, real = DigitsFeatures.load(), load_cached_images(DataConfig(split="train[:300]"))
    assert real.labels is not None
    of_fake, of_real = network(DIGITS.images), network(real.images)
    for of in range(10):
        fakes, reals = of_fake[DIGITS.labels == of], of_real[real.labels == of]
        assert found["scores"]["fid"][str(of)] == pytest.approx(frechet_distance(fakes, reals), rel=1e-5)
        expected = precision_recall(reals, fakes)
        assert [found["scores"][name][str(of)] for name in ("precision", "recall")] == pytest.approx(expected)
        assert (found["num_images"][str(of)], found["reference_images"][str(of)]) == (len(fakes), len(reals))
    assert found["mean"]["fid"] == pytest.approx(sum(found["scores"]["fid"].values()) / 10)
    table = (tmp_path / "one" / "table.md").read_text()
    assert f"Classes of {drawn}:" in table
    assert len([line for line in table.splitlines() if line.startswith("| 0 |")]) == 1
    assert (tmp_path / "plain" / "table.md").read_text() == table.partition("\nClasses of ")[0]
    assert list(json.loads((tmp_path / "one" / "manifest.json").read_text())["settings"]["per_class"]) == [str(drawn)]
