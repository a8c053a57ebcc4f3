"""ddpm-hf-evaluate: from folders, files and data sets of images to scores that can be made again."""

import errno
import io
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.cli import evaluate, sample
from ddpm_hf.cli.compared import described_reference
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.images import CAPTION, save_png, to_pil
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, manifolds
from ddpm_hf.metrics.bits_per_dim import bits_per_dim
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.memorisation import copying_test
from ddpm_hf.metrics.results import nearest_picture
from ddpm_hf.pixels import PixelFormat
from tests.runs import Fault, Started

WITHOUT_INCEPTION = pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="it would be downloaded")

REAL = load_cached_images(DataConfig(split="train[:300]")).images
"""The reference of most tests."""


def fakes(number: int = 60, seed: int = 0, noise: int = 40) -> Tensor:
    """Digits of the test part with noise, uint8."""
    digits = load_cached_images(DataConfig(split="test")).images[seed * number : (seed + 1) * number]
    generator = torch.Generator().manual_seed(seed)
    return (digits.int() + torch.randint(-noise, noise + 1, digits.shape, generator=generator)).clamp(0, 255).byte()


def write(folder: Path, images: Tensor) -> Path:
    for i, image in enumerate(to_pil(images)):
        save_png(image, folder / "000000" / f"{i:06d}.png")
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("samples") / "png", fakes())


def start(output: Path, *arguments: object, processes: int = 1, fault: Fault | None = None) -> Started:
    usual = ["--reference", "digits", "--reference_split", "train[:300]", "--extractor", "digits", "--threads", 1]
    return Started([*usual, *arguments], output, processes, fault, main=evaluate.main)


def results(output: Path, *arguments: object, processes: int = 1) -> dict[str, Any]:
    run = start(output, *arguments, processes=processes)
    assert run.wait() == [0] * processes, run.said()
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def values(output: Path, *arguments: object, processes: int = 1) -> dict[str, float]:
    """The scores of the one set of samples."""
    scores = results(output, *arguments, processes=processes)["scores"]
    return {name: value for name, entry in scores.items() for value in entry.values()}


def refusal(output: Path, *arguments: object) -> str:
    """The one sentence of a command that ends with status 2."""
    run = start(output, *arguments)
    assert run.wait() == [2], run.said()
    sentences = [line for line in run.said().splitlines() if "error:" in line]
    assert len(sentences) == 1, run.said()
    assert "Traceback" not in run.said()
    return sentences[0].partition("error: ")[2]


ALL = ("--metrics", "fid", "kid", "is", "precision_recall", "density_coverage")


def test_the_scores_are_those_of_the_functions(samples: Path, tmp_path: Path) -> None:
    scores = values(tmp_path / "scores", "--samples", samples, *ALL)
    assert list(scores) == ["fid", "kid", "is", "precision", "recall", "density", "coverage"]
    written = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert list(written["errors"]) == list(scores)
    assert written["num_images"] == {str(samples): 60}
    assert (written["reference_images"], written["extractor"], len(written["extractor_sha256"])) == (300, "digits", 64)
    network = DigitsFeatures.load()
    real, fake = network(REAL), network(fakes())
    # Features of other batches differ in their last bits.
    assert scores["fid"] == pytest.approx(frechet_distance(fake, real), rel=1e-5)
    for k, names in ((3, ("precision", "recall")), (5, ("density", "coverage"))):
        expected = manifolds(real, fake, k).scores
        assert [scores[name] for name in names] == pytest.approx([expected[name] for name in names])
    table = (tmp_path / "scores" / "table.md").read_text().splitlines()
    assert table[0].startswith("| samples | images | fid | kid |")
    assert f"| {samples} | 60 | {scores['fid']:.4g} ± " in table[2]


def test_two_processes_score_as_one(samples: Path, tmp_path: Path) -> None:
    common = ["--samples", samples, *ALL, "--batch_size", 16]
    one = results(tmp_path / "one", *common, "--cache_dir", tmp_path / "a")
    two = results(tmp_path / "two", *common, "--cache_dir", tmp_path / "b", processes=2)
    assert one == two


def test_a_folder_an_npz_and_parquet_of_the_same_images_score_alike(samples: Path, tmp_path: Path) -> None:
    images = fakes()
    np.savez(tmp_path / "adm.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(samples.rglob("*.png"))]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "images.parquet")
    one, two, three = (
        values(tmp_path / f"of-{path.name}", "--samples", path)
        for path in (samples, tmp_path / "adm.npz", tmp_path / "images.parquet")
    )
    assert one == two == three


def test_several_sets_stand_side_by_side_with_their_errors(samples: Path, tmp_path: Path) -> None:
    worse = write(tmp_path / "worse", fakes(50, noise=120))
    found = results(tmp_path / "scores", "--compare", samples, worse, "--bootstrap", 30)
    value, error = found["scores"]["fid"], found["errors"]["fid"]
    assert value[str(samples)] + error[str(samples)] < value[str(worse)] - error[str(worse)]
    lines = (tmp_path / "scores" / "table.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 4
    assert all("covariance is singular" in note for note in lines if note.startswith("Note: "))
    for number in (1, 2):
        assert (tmp_path / "scores" / f"nearest-{number}.png").exists()


def test_statistics_go_out_and_in_as_pytorch_fid_has_them(samples: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    of_images = values(tmp_path / "images", "--samples", samples, "--metrics", "fid", "--save_statistics", file)
    with np.load(file) as content:
        mu, sigma = content["mu"], content["sigma"]
    assert (mu.shape, sigma.shape, mu.dtype) == ((64,), (64, 64), np.float64)
    of_file = values(tmp_path / "file", "--samples", samples, "--metrics", "fid", "--reference", file)
    assert of_file["fid"] == pytest.approx(of_images["fid"], rel=1e-9)
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma)  # as others write it, with no word on where it is from
    of_theirs = values(tmp_path / "c", "--samples", samples, "--metrics", "fid", "--reference", tmp_path / "theirs.npz")
    assert of_theirs == of_file


def test_the_manifest_of_an_earlier_version_is_of_the_same_settings() -> None:
    described = described_reference(EvaluateConfig("digits", Path("scores"), samples="samples"), "a", 9)
    names = ("config", "split", "revision", "image_column", "channels", "center_crop", "resolution", "resize_filter")
    assert {name for name, value in described.items() if value is not None} <= {
        *("name", "fingerprint", "num_images", *(f"reference_{name}" for name in names))
    }
    assert described["reference_center_crop"] is False


def test_the_manifest_says_what_the_scores_are_of_and_other_settings_are_refused(samples: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    first = results(output, "--samples", samples)
    manifest = json.loads((output / "manifest.json").read_text())
    settings = manifest["settings"]
    assert settings["reference"]["name"] == "digits"
    assert settings["reference"]["reference_split"] == "train[:300]"
    assert settings["reference"]["num_images"] == 300
    assert len(settings["extractor"]["sha256"]) == 64
    assert settings["samples"][str(samples)]["num_images"] == 60
    assert manifest["environment"]["torch"] == version("torch")
    assert results(output, "--samples", samples) == first
    said = refusal(output, "--samples", samples, "--num_images", 50)
    assert "holds results of other settings (samples " in said


def test_a_sample_learnt_by_heart_stands_beside_itself() -> None:
    network = DigitsFeatures.load()
    fake = REAL[40:45]
    picture = np.asarray(nearest_picture(fake, network(fake), REAL, network(REAL)))
    column, pitch = 33, 33 + CAPTION
    rows = range(0, 5 * pitch, pitch)
    assert picture.shape == (5 * pitch - 1, 9 * 33 - 1)
    for row in rows:
        assert np.array_equal(picture[row : row + 32, :32], picture[row : row + 32, 2 * column : 2 * column + 32])
        assert not np.array_equal(picture[row : row + 32, :32], picture[row : row + 32, 3 * column : 3 * column + 32])


HELD_OUT = ("--held_out_split", "test[:200]")


def test_held_out_images_are_scored_and_tell_copies_from_new_images(tmp_path: Path) -> None:
    new = write(tmp_path / "new", load_cached_images(DataConfig(split="test[200:400]")).images)
    copies = write(tmp_path / "copies", (REAL[:200].int() + 3).clamp(0, 255).byte())
    found = results(tmp_path / "scores", "--compare", new, copies, *HELD_OUT, "--metrics", "fid", "--bootstrap", 0)
    assert found["num_images"] == {str(new): 200, str(copies): 200, "held_out": 200}
    assert found["metrics"] == ["fid", "authenticity"]
    fid, authenticity = found["scores"]["fid"], found["scores"]["authenticity"]
    assert fid[f"ratio {new}"] == pytest.approx(fid[str(new)] / fid["held_out"])
    network = DigitsFeatures.load()
    held_out = load_cached_images(DataConfig(split="test[:200]")).images
    assert fid["held_out"] == pytest.approx(frechet_distance(network(held_out), network(REAL)), rel=1e-5)
    assert authenticity[str(new)] > 0.4
    assert authenticity[str(copies)] < 0.05
    expected = copying_test(network(REAL), network(load_images(copies)), network(held_out))
    assert found["copying"][str(copies)]["p_value"] == pytest.approx(expected.p_value, rel=1e-3)
    assert expected.p_value < 1e-20
    assert found["copying"][str(new)]["p_value"] > 0.01
    table = (tmp_path / "scores" / "table.md").read_text()
    assert f"| ratio {new} | | " in table
    assert "| held_out | 200 | " in table
    assert f"{copies}: samples lie nearer to training images than held-out images do (p = " in table
    assert f"{new}: samples lie no nearer" in table
    settings = json.loads((tmp_path / "scores" / "manifest.json").read_text())["settings"]["held_out"]
    assert {"name": "digits", "split": "test[:200]", "num_images": 200}.items() <= settings.items()
    assert settings["fingerprint"]


def test_one_set_has_one_ratio_and_numbers_that_differ_are_said(samples: Path, tmp_path: Path) -> None:
    split = ["--held_out_split", "test[:40]"]
    found = results(tmp_path / "scores", "--samples", samples, *split, "--bootstrap", 0)
    fid = found["scores"]["fid"]
    assert list(fid) == [str(samples), "held_out", "ratio"]
    assert fid["ratio"] == pytest.approx(fid[str(samples)] / fid["held_out"])
    assert f"{samples} has 60 images and the held-out ones are 40, so their scores differ by that too" in found["notes"]


def test_held_out_images_may_be_a_data_set_of_their_own(samples: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "own", torch.cat([fakes(50, noise=0), REAL[:10]]))
    found = results(tmp_path / "scores", "--samples", samples, "--held_out", own, "--metrics", "fid", "--bootstrap", 0)
    assert found["num_images"]["held_out"] == 60
    assert found["held_out"]["name"] == str(own)
    assert "10 of the 60 held-out images are in the reference too" in found["notes"]


def test_two_processes_find_the_same_copies(samples: Path, tmp_path: Path) -> None:
    common = ["--samples", samples, *HELD_OUT, "--metrics", "fid", "--batch_size", 16, "--bootstrap", 0]
    one = results(tmp_path / "one", *common, "--cache_dir", tmp_path / "a")
    assert results(tmp_path / "two", *common, "--cache_dir", tmp_path / "b", processes=2) == one


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--held_out_split", "train[:300]"], "the held-out images are those of the reference, digits"),
        (["--held_out_split", "nothing"], "--reference_config, --held_out_split and --reference_revision"),
        (["--held_out", "{nowhere}"], "there is no such file or folder"),
        (["--held_out_split", "test[:3]"], "there are 3 held-out images, and the metrics need 4"),
        (["--held_out_split", "test", "--reference", "{statistics}"], "compared with the training images themselves"),
        (["--held_out_split", "test", "--model", "x", "--metrics", "bits_per_dim"], "are for samples"),
    ],
)
def test_held_out_images_that_cannot_be_are_one_sentence(
    samples: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    places = {"nowhere": tmp_path / "nowhere", "statistics": statistics(tmp_path / "reference")}
    given = [argument.format(**places) for argument in arguments]
    assert sentence in refusal(tmp_path / "scores", "--samples", samples, *given)
    assert not (tmp_path / "scores").exists()


def thirteen_bands(path: Path, number: int, seed: int) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (number, 8, 8, 13), dtype=np.uint8)
    np.savez(path, arr_0=values)
    return path


def test_thirteen_bands_are_scored_by_what_can_see_them(tmp_path: Path) -> None:
    one, two = thirteen_bands(tmp_path / "one.npz", 60, 0), thirteen_bands(tmp_path / "two.npz", 60, 1)
    common = ["--samples", one, "--reference", two]
    said = refusal(tmp_path / "scores", *common)
    assert "the extractor digits takes images of 1 channel(s) and would be given 13 of 13" in said
    found = results(tmp_path / "all", *common, "--extractor", "pixels", "--shown_channels", "12,5,0")
    assert found["scores"]["fid"][str(one)] > 0
    with Image.open(tmp_path / "all" / "nearest.png") as picture:
        assert picture.mode == "RGB"
        with np.load(one) as file:
            first = file["arr_0"][torch.randperm(60, generator=torch.Generator().manual_seed(0))[0], 0, 0]
        assert picture.getpixel((0, 0)) == tuple(first[[12, 5, 0]].tolist())
    one_band = ["--extractor_channels", 4, "--shown_channels", 4, "--colour_map", "viridis"]
    few = results(tmp_path / "few", *common, *one_band)
    assert "the features see the channels [4] of 13" in few["notes"]
    manifest = json.loads((tmp_path / "few" / "manifest.json").read_text())["settings"]
    assert (manifest["extractor"]["extractor_channels"], manifest["shown_channels"]) == ([4], [4])
    of_none = ["--extractor", "pixels", "--shown_channels", 13]
    assert "shown_channels is [13]" in refusal(tmp_path / "no", *common, *of_none)


def deep_model(folder: Path, pixels: PixelFormat) -> Path:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, in_channels=5, out_channels=5, **blocks, **kinds)
    DDPMCustomPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=20), pixels.to_dict()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "pixels",
    [
        PixelFormat("uint16", (100,), (4000,)),
        PixelFormat("float32", (-1.5, 0.0, 0.0, 0.0, -9.0), (1.5, 1.0, 1.0, 2.0, 0.0)),
    ],
    ids=lambda pixels: pixels.dtype,
)
def test_samples_of_any_type_are_scored_in_the_range_that_they_were_drawn_in(
    tmp_path: Path, pixels: PixelFormat
) -> None:
    """From the model's own, over the samples' manifest, to what the features see of the reference."""
    folder = deep_model(tmp_path / "model", pixels)
    few = ["--model", folder, "--num_images", 20, "--num_inference_steps", 20, "--format", "npy", "--threads", 1]
    drawing = Started(few, tmp_path / "samples", main=sample.main)
    assert drawing.wait() == [0], drawing.said()
    noise = torch.randn(30, 5, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    real = pixels.from_model(noise)
    np.savez(tmp_path / "real.npz", arr_0=real.numpy().transpose(0, 2, 3, 1))
    common = ["--samples", tmp_path / "samples", "--reference", tmp_path / "real.npz", "--metrics", "fid"]
    found = results(tmp_path / "scores", *common, "--extractor", "pixels", "--bootstrap", 0)
    extractor, drawn = load_extractor("pixels"), load_images(tmp_path / "samples")
    assert drawn.dtype == real.dtype
    seen = [extractor(pixels.to_model(images)) for images in (drawn, real)]
    expected = frechet_distance(*seen)
    assert found["scores"]["fid"][str(tmp_path / "samples")] == pytest.approx(expected, rel=1e-4)
    other = ["--reference_value_range", "[-20, 60000]", "--extractor", "pixels", "--bootstrap", 0]
    assert results(tmp_path / "other", *common, *other)["scores"] != found["scores"]
    said = refusal(tmp_path / "no", *common, "--extractor", "digits")
    assert "the extractor digits takes images of 1 channel(s) and would be given 5 of 5" in said
    one = results(tmp_path / "one", *common, "--extractor_channels", 3, "--bootstrap", 0)
    assert any(note.startswith(f"the features see the {pixels.dtype} values") for note in one["notes"])


def test_a_file_of_arrays_has_splits_as_in_training(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(200, 3000, (100, 8, 8, 5), dtype=np.uint16)
    np.savez(tmp_path / "bands.npz", x_train=values[:60], x_test=values[60:])
    np.savez(tmp_path / "drawn.npz", arr_0=values[::-1][:40])
    common = ["--reference", tmp_path / "bands.npz", "--reference_split", "train", "--held_out_split", "test"]
    percentiles = ["--extractor", "pixels", "--reference_value_range", "percentile", "--bootstrap", 0]
    found = results(tmp_path / "scores", "--samples", tmp_path / "drawn.npz", *common, *percentiles)
    fid = found["scores"]["fid"]
    assert fid["ratio"] == pytest.approx(1)
    assert found["reference_images"] == 60


def test_samples_of_another_type_than_the_reference_are_one_sentence(samples: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "deep.npz", arr_0=(fakes().permute(0, 2, 3, 1).int() * 257).numpy().astype(np.uint16))
    said = refusal(tmp_path / "scores", "--samples", tmp_path / "deep.npz")
    assert "deep.npz has uint16 images and digits uint8 ones; compare images of one type" in said
    of_16_bits = ["--samples", tmp_path / "deep.npz", "--reference_dtype", "uint16", "--metrics", "fid"]
    of_8_bits = ["--samples", samples, "--metrics", "fid"]
    assert values(tmp_path / "a", *of_16_bits) == pytest.approx(values(tmp_path / "b", *of_8_bits))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((20, 8, 8, 1), np.float32))
    said = refusal(tmp_path / "c", "--samples", tmp_path / "float.npz", "--reference", tmp_path / "float.npz")
    assert "hold float32 values from 0 to 0, which have no range of their own; give --reference_value_range" in said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **kinds)
    folder = tmp_path_factory.mktemp("model")
    DDPMCustomPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return folder


BITS = ("--metrics", "bits_per_dim", "--reference_split", "test[:5]", "--batch_size", 2)


def test_bits_per_dim_of_a_model_on_two_processes_as_on_one(model: Path, tmp_path: Path) -> None:
    one = results(tmp_path / "one", "--model", model, *BITS)
    assert results(tmp_path / "two", "--model", model, *BITS, processes=2) == one
    (score,) = one["scores"]["bits_per_dim"].values()
    with np.load(tmp_path / "one" / "bits_per_dim.npz") as file:
        found, terms = file["values"], file["terms"]
    assert (found.shape, terms.shape) == ((5,), (5, 21))
    assert score == pytest.approx(found.mean())
    assert np.allclose(terms.sum(axis=1), found)
    pipe, images = DDPMCustomPipeline.from_pretrained(model), load_cached_images(DataConfig(split="test[:5]")).images
    assert score == pytest.approx(bits_per_dim(pipe, images, batch_size=2).mean, rel=1e-6)
    assert (tmp_path / "one" / "bits_per_dim.png").exists()


def test_bits_per_dim_are_those_of_the_models_own_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **kinds).eval()
    for name, pixels in (("deep", PixelFormat.whole("uint16")), ("real", PixelFormat("float32", (0.0,), (1.0,)))):
        pipe = DDPMCustomPipeline(unet, DDPMScheduler(num_train_timesteps=20), pixels.to_dict())
        pipe.save_pretrained(tmp_path / name)
    common, deep = [*BITS, "--likelihood", "estimate"], tmp_path / "deep"
    assert "makes uint16 images and digits has uint8 ones" in refusal(tmp_path / "no", "--model", deep, *common)
    found = results(tmp_path / "bits", "--model", deep, *common, "--reference_dtype", "uint16")
    assert found["scores"]["bits_per_dim"][str(deep)] > 8
    said = refusal(tmp_path / "no", "--model", tmp_path / "real", *common)
    assert "the images are float32, and bits are defined for whole numbers" in said


@pytest.mark.parametrize("method", ["estimate", "ode"])
def test_bits_per_dim_by_quicker_ways(model: Path, tmp_path: Path, method: str) -> None:
    options = ["--ode_rtol", 0.01, "--ode_atol", 0.01] if method == "ode" else []
    found = results(tmp_path / "bits", "--model", model, *BITS, "--likelihood", method, *options)
    assert found["network_evaluations"] == 11 if method == "estimate" else 10 < found["network_evaluations"] < 200
    assert f"asked {found['network_evaluations']:g} times" in found["notes"][0]
    assert np.isfinite(found["scores"]["bits_per_dim"][str(model)])
    assert found["errors"]["bits_per_dim"][str(model)] > 0
    assert found["num_images"] == {str(model): 5}
    assert not (tmp_path / "bits" / "bits_per_dim.png").exists()


def test_a_fixed_grid_asks_twice_a_step(model: Path, tmp_path: Path) -> None:
    found = results(tmp_path / "bits", "--model", model, *BITS, "--likelihood", "ode", "--ode_steps", 4)
    assert (found["network_evaluations"], found["ode_steps"]) == (7, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metrics", "bits_per_dim"], "bits_per_dim scores a --model"),
        ([*BITS, "--model", "m", "--ode_rtol", 0.01], "ode_rtol is 0.01 and is for --metrics bits_per_dim --likel"),
        ([*BITS, "--model", "m", "--likelihood", "ode", "--ode_atol", 0], "ode_atol is 0.0 and must be from 1e-10 to"),
        (["--metrics", "bits_per_dim", "fid", "--model", "x"], "--metrics bits_per_dim alone"),
        ([*BITS, "--model", "nobody/nothing"], "nobody/nothing"),
        ([*BITS, "--model", "{model}", "--reference_resolution", 16], "makes images of (1, 8, 8) and digits has"),
    ],
)
def test_a_model_that_cannot_be_scored_is_one_sentence(
    model: Path, tmp_path: Path, arguments: list[object], sentence: str
) -> None:
    assert sentence in refusal(tmp_path / "bits", *(str(argument).format(model=model) for argument in arguments))


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


def statistics(folder: Path, **changes: Any) -> Path:
    content = {"mu": np.zeros(64), "sigma": np.eye(64)} | changes
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "reference.npz", **content)
    return folder / "reference.npz"


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
