"""Images of any type and number of channels, and feature networks that want 8 bits and three of them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.launch import allow_tf32
from ddpm_hf.metrics import frechet_distance
from ddpm_hf.metrics.extractors import Extractor, load_extractor
from ddpm_hf.metrics.intake import Intake
from ddpm_hf.metrics.reference import FeatureExtraction, Statistics
from ddpm_hf.pixels import TORCH, PixelFormat


class OfRGB(Extractor):
    """The mean of each channel; takes what Inception takes."""

    channels = (1, 3)

    def __init__(self) -> None:
        super().__init__("rgb", "0" * 64)

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.expand(-1, 3, -1, -1).float().mean(dim=(2, 3))


def bands(channels: int, number: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, 6, 5), dtype=torch.uint8, generator=generator)


def test_named_channels_are_seen_in_their_order() -> None:
    images = bands(13)
    found = Intake(channels=(12, 0, 3))(images, OfRGB())
    assert torch.equal(found, images[:, [12, 0, 3]])
    assert Intake()(images, OfRGB()) is images


@pytest.mark.parametrize(
    ("channels", "named", "sentence"),
    [
        (13, None, "takes images of 1 or 3 channel(s) and would be given 13 of 13; name them in extractor_channels"),
        (2, None, "2 of 2; name them in extractor_channels, such as [2,1,0], or take the extractor pixels"),
        (13, (1, 2), "would be given 2 of 13"),
        (13, (1, 2, 13), "extractor_channels is [1, 2, 13], and the images have the 13 channel(s) 0 to 12"),
    ],
)  # fmt: skip
def test_channels_that_a_network_cannot_see_are_one_sentence(
    channels: int, named: tuple[int, ...] | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Intake(channels=named).check(OfRGB(), channels)


@pytest.mark.parametrize("name", ["digits", "pixels"])
def test_the_networks_say_which_channels_they_take(name: str) -> None:
    extractor = load_extractor(name)
    Intake().check(extractor, 1)
    if name == "pixels":
        Intake().check(extractor, 13)
    else:
        with pytest.raises(ValueError, match="the extractor digits takes images of 1 channel"):
            Intake().check(extractor, 3)


@pytest.mark.parametrize(
    ("format", "values"),
    [
        (PixelFormat.whole("uint16"), [0, 257, 65535, 384]),
        (PixelFormat("float32", (-1.0,), (1.0,)), [-1.0, 1 / 127.5 - 1, 1.0, 1.4 / 127.5 - 1]),
        (PixelFormat("uint16", (1000,), (1255,)), [999, 1001, 1300, 1001]),
    ],
)
def test_values_of_other_types_are_scaled_by_their_range_and_it_is_said(
    format: PixelFormat, values: list[float]
) -> None:
    images = torch.tensor(values).to(TORCH[format.dtype]).view(4, 1, 1, 1)
    intake = Intake(format)
    assert intake(images, OfRGB()).flatten().tolist() == [0, 1, 255, 1]
    (note,) = intake.notes(OfRGB(), 1)
    assert note.startswith(f"the features see the {format.dtype} values")
    assert "as 8 bits" in note
    assert intake.notes(load_extractor("pixels"), 1) == []
    assert Intake(format, (0,)).notes(OfRGB(), 5)[0] == "the features see the channels [0] of 5"
    assert Intake().notes(OfRGB(), 3) == []


def test_pixels_are_the_values_themselves_in_their_range() -> None:
    extractor = load_extractor("pixels")
    format = PixelFormat("uint16", (0, 100), (1000, 200))
    images = torch.stack([torch.full((4, 6), 250), torch.full((4, 6), 175)])[None].to(torch.uint16)
    found = extractor(Intake(format)(images, extractor))
    assert found.shape == (1, 48)
    assert found[0].tolist() == pytest.approx([-0.5] * 24 + [0.5] * 24)


def test_pixels_are_means_over_areas_where_there_are_too_many() -> None:
    extractor = load_extractor("pixels")
    images = bands(1, 3).float().repeat(1, 4, 16, 16)[:, :, :64, :64]
    found = extractor(images)
    assert found.shape == (3, 4 * 16 * 16)
    expected = images.reshape(3, 4, 16, 4, 16, 4).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(found, expected)
    for shape in ((1, 13, 200, 10), (1, 2000, 3, 3), (1, 1, 1, 5000), (1, 1, 5000, 1)):
        size = extractor(torch.zeros(shape)).shape[1]
        assert 0 < size <= max(1024, shape[1])


def test_the_distance_of_pixels_is_that_of_their_gaussians() -> None:
    """Closed form for two bands of constant images, in units of half the range: the squared distance of the means and
    of the standard deviations."""
    generator = np.random.default_rng(0)
    format = PixelFormat("float32", (0.0,), (10.0,))
    extractor = load_extractor("pixels")
    features_of = FeatureExtraction(extractor, Accelerator(cpu=True), intake=Intake(format))

    def drawn(mean: tuple[float, float], sigma: tuple[float, float]) -> Tensor:
        values = generator.normal(mean, sigma, (20_000, 2)).astype(np.float32)
        return features_of.of(torch.from_numpy(values)[:, :, None, None])

    distance = frechet_distance(drawn((4, 5), (0.5, 0.5)), drawn((5, 5), (0.5, 1.0)))
    assert distance == pytest.approx((1 / 5) ** 2 + (0.5 / 5) ** 2, rel=0.05)


def test_features_are_kept_for_each_way_of_seeing(tmp_path: Path) -> None:
    images, accelerator = bands(5), Accelerator(cpu=True)
    first = FeatureExtraction(OfRGB(), accelerator, cache_dir=tmp_path, intake=Intake(channels=(0, 1, 2)))
    other = FeatureExtraction(OfRGB(), accelerator, cache_dir=tmp_path, intake=Intake(channels=(2, 1, 0)))
    found = first.kept(images, "a"), other.kept(images, "a")
    assert torch.equal(found[0], found[1].flip(1))
    assert not torch.equal(*found)
    assert torch.equal(first.kept(images, "a"), found[0])
    assert len(list(tmp_path.iterdir())) == 2


def test_statistics_of_another_way_of_seeing_are_refused(tmp_path: Path) -> None:
    accelerator, path = Accelerator(cpu=True), tmp_path / "statistics.npz"
    three = FeatureExtraction(OfRGB(), accelerator, intake=Intake(channels=(0, 1, 2)))
    Statistics.of(three.of(bands(5, 30)), three, (5, 6, 5)).save(path)
    loaded = Statistics.load(path)
    assert loaded is not None
    loaded.check(path, three, (5, 6, 5), 3)
    other = FeatureExtraction(OfRGB(), accelerator, intake=Intake(channels=(2, 1, 0)))
    with pytest.raises(ValueError, match="use the same type, range and --extractor_channels"):
        loaded.check(path, other, (5, 6, 5), 3)


def test_features_are_of_exact_float32_whatever_training_allows() -> None:
    class Precise(OfRGB):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(images)

    seen: list[tuple[str, bool]] = []
    allow_tf32(True)
    FeatureExtraction(Precise(), Accelerator(cpu=True)).of(bands(3))
    allow_tf32(False)
    assert seen == [("highest", False)]
