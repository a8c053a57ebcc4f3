"""ddpm-hf-evaluate: from folders, files and data sets of images to scores that can be made again."""

import json
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.cli import sample
from ddpm_hf.cli.compared import described_reference
from ddpm_hf.cli.evaluate import EvaluateConfig
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.images import CAPTION
from ddpm_hf.metrics import DigitsFeatures, frechet_distance, manifolds
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.metrics.memorisation import copying_test
from ddpm_hf.metrics.results import nearest_picture
from ddpm_hf.pixels import PixelFormat
from tests.cli.scored import fakes, refusal, results, statistics, values, write
from tests.runs import Started

REAL = load_cached_images(DataConfig(split="train[:300]")).images
"""The reference of most tests."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("samples") / "png", fakes())


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
