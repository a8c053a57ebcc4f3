"""Feature networks: the loading, the preprocessing and the wiring, with weights that the test makes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from ddpm_hf.files import sha256_of
from ddpm_hf.metrics import DigitsFeatures
from ddpm_hf.metrics.extractors import Extractor, load_extractor
from ddpm_hf.metrics.reference import FeatureExtraction
from tests.runs import start_processes_of


def pictures(number: int = 5, channels: int = 3, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, size, size), dtype=torch.uint8, generator=generator)


class StandIn(nn.Module):
    """With the interface of NVIDIA's VGG16 file."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2))

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        means = images.double().mean(dim=(2, 3))
        return means @ self.weight.double() if return_features else means


class Plain(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


def scripted(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))  # type: ignore[no-untyped-call]
    return path


def test_the_digits_network_gives_features_and_class_scores() -> None:
    extractor, network = load_extractor("digits"), DigitsFeatures.load()
    images = pictures(channels=1, size=8)
    assert torch.equal(extractor(images), network(images))
    assert torch.equal(extractor.class_scores(network(images)), network.logits(network(images)))
    assert len(extractor.sha256) == 64


def test_vgg16_is_asked_for_features_of_rgb_images(tmp_path: Path) -> None:
    path = scripted(StandIn(), tmp_path / "vgg16.pt")
    extractor = load_extractor("vgg16", path)
    images = pictures()
    expected = images.double().mean(dim=(2, 3)) @ torch.arange(6.0).reshape(3, 2).double()
    assert extractor(images).dtype == torch.float32
    torch.testing.assert_close(extractor(images), expected.float())
    grey = images[:, :1]
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    assert extractor.sha256 == sha256_of(path)
    with pytest.raises(ValueError, match="the extractor vgg16 knows no classes"):
        extractor.class_scores(extractor(images))


def test_a_torchscript_file_is_a_network_of_ones_own(tmp_path: Path) -> None:
    extractor = load_extractor(str(scripted(Plain(), tmp_path / "mine.pt")))
    torch.testing.assert_close(extractor(pictures()), pictures().float().mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14)
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_sees_what_pillow_would_have_resized(dino: Path) -> None:
    extractor = load_extractor("dinov2", dino)
    images = pictures(3, size=32)
    resized = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC))
        for image in images
    ]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino)(pixel_values=(pixels - mean) / std).last_hidden_state[:, 0]
        found = extractor(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 0.01  # Pillow's coefficients are of 8 bits: a grey level here and there
    assert torch.equal(load_extractor(str(dino))(images[:1]), found[:1])


def not_weights(folder: Path) -> Path:
    path = folder / "bad.pt"
    path.write_bytes(b"no weights at all")
    return path


def without_a_file(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("vgg16", lambda folder: None, r"vgg16.pt, and HF_HUB_OFFLINE is set; get them with 'curl --create-dirs -Lo"),
        ("vgg16", lambda folder: folder / "none.pt", r"are not at .*none.pt; get them with 'curl --create-dirs -Lo"),
        ("vgg16", not_weights, r"bad.pt is not a TorchScript file"),
        ("inception", not_weights, r"bad.pt has the SHA-256 \w+, and the weights of the extractor inception have 67"),
        ("dinov2", without_a_file, r"has no config.json; a folder of a vision transformer has"),
        ("owner/network", lambda folder: None, r"cannot be had from the Hub: .*'hf download owner/network config.json"),
        ("what", lambda folder: None, r"the extractor 'what' is not one of digits, pixels, inception, vgg16, dinov2"),
    ],
)  # fmt: skip
def test_weights_that_are_missing_or_wrong_are_one_sentence(
    tmp_path: Path, name: str, make: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_extractor(name, make(tmp_path))


class Counting(Extractor):
    """The mean colour, and how many images were asked for it."""

    def __init__(self) -> None:
        super().__init__("counting", "0" * 64)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return images.float().mean(dim=(2, 3))


def test_features_are_computed_once_for_each_set_and_network(tmp_path: Path) -> None:
    network = Counting()
    features = FeatureExtraction(network, Accelerator(cpu=True), batch_size=2, cache_dir=tmp_path)
    first = features.kept(pictures(), "a")
    assert torch.equal(first, pictures().float().mean(dim=(2, 3)))
    assert torch.equal(features.kept(pictures(), "a"), first)
    assert network.asked == 5
    features.kept(pictures(), "b")
    network.sha256 = "1" * 64
    features.kept(pictures(), "b")
    assert network.asked == 15
    assert len(list(tmp_path.iterdir())) == 3


def share_the_work() -> None:
    network = Counting()
    features = FeatureExtraction(network, Accelerator(cpu=True), batch_size=2).of(pictures(9))
    assert torch.equal(features, pictures(9).float().mean(dim=(2, 3)))
    assert network.asked <= 6  # of five batches, at most three


def test_two_processes_share_the_work() -> None:
    start_processes_of(2, share_the_work)


class Spoilt(Counting):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / 0


class OfOneChannel(Counting):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images.float(), torch.ones(1, 1, 3, 3)).flatten(1)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Spoilt(), "the extractor counting gave features that are not finite"),
        (OfOneChannel(), r"the extractor counting does not take images of \(3, 12, 12\): .*channels"),
    ],
)
def test_a_network_that_does_not_work_is_one_sentence(network: Extractor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FeatureExtraction(network, Accelerator(cpu=True)).of(pictures())


@pytest.mark.parametrize("place", [0, 9, -1])
def test_damaged_features_are_computed_again(tmp_path: Path, place: int) -> None:
    network = Counting()
    features = FeatureExtraction(network, Accelerator(cpu=True), batch_size=2, cache_dir=tmp_path)
    first = features.kept(pictures(), "a")
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert torch.equal(features.kept(pictures(), "a"), first)
    assert network.asked == 10
    assert torch.equal(features.kept(pictures(), "a"), first)
    assert network.asked == 10


def test_features_that_cannot_be_kept_are_not_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    features = FeatureExtraction(Counting(), Accelerator(cpu=True), batch_size=2, cache_dir=tmp_path / "file")
    assert torch.equal(features.kept(pictures(), "a"), pictures().float().mean(dim=(2, 3)))
    assert "could not be kept" in caplog.text


def look_while_another_run_writes(folder: Path) -> None:
    """The second process sees a cache that the first does not: both must compute."""
    accelerator = Accelerator(cpu=True)
    features = FeatureExtraction(Counting(), accelerator, batch_size=2, cache_dir=folder)
    if accelerator.process_index == 1:
        features = FeatureExtraction(Counting(), accelerator, batch_size=2, cache_dir=folder / "other")
        path = folder / "other"
        path.mkdir()
        key = hashlib.sha256(f"a {'0' * 64} 2".encode()).hexdigest()
        (path / f"{key}.safetensors").write_bytes(b"written by another run meanwhile")
    assert torch.equal(features.kept(pictures(), "a"), pictures().float().mean(dim=(2, 3)))
    assert torch.equal(features.kept(pictures(), "a"), pictures().float().mean(dim=(2, 3)))


def test_one_process_looks_for_kept_features_for_all(tmp_path: Path) -> None:
    start_processes_of(2, look_while_another_run_writes, tmp_path)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    """Nor is anybody asked at a terminal whether it may."""
    config = {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold a network of the transformers library"):
        load_extractor(str(tmp_path))
    assert not (tmp_path / "ran").exists()
