"""The Inception network of the FID, with weights of the right format that the test makes.

torch-fidelity wants torchvision, whose ordinary build does not load beside a CPU build of torch, and of which this
network uses nothing; so an empty one stands in its place. Runs where torch-fidelity is installed, as in CI.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F

from ddpm_hf.files import sha256_of

pytestmark = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")


@pytest.fixture(scope="module", autouse=True)
def inception() -> Any:
    """torch-fidelity's module of the network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            patch.setitem(sys.modules, name, MagicMock(__spec__=ModuleSpec(name, None)))
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Loads the extractor from a file, whose hash is taken for the right one."""
    # Imported late, as torchmetrics imports torch-fidelity.
    extractors = importlib.import_module("ddpm_hf.metrics.extractors")

    def extractor_of(path: Path) -> Any:
        source = extractors.Source(path.name, "https://x", sha256_of(path))
        monkeypatch.setitem(extractors.SOURCES, "inception", source)
        return extractors.load_extractor("inception", path)

    return extractor_of


@pytest.fixture(scope="module")
def weights(inception: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All weights drawn anew, small enough to stay finite."""
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *arguments, **options: {})
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    state = {
        name: value
        if not value.is_floating_point()
        else 1 + torch.rand(value.shape, generator=generator)
        if "bn" in name
        else torch.randn(value.shape, generator=generator) / max(1, value[0].numel()) ** 0.5
        for name, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_inception_features_are_those_of_the_unsmoothed_resize(
    inception: Any, weights: Path, load: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load(weights)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    features = extractor(images)
    assert features.shape == (2, 2048)
    assert features.std() > 0
    assert not features.requires_grad

    # TensorFlow 1 puts pixel i of the result at i * 32 / 299 of the source and draws a line between two neighbours.
    at = torch.arange(299) * 32 / 299
    low, share = at.long(), at - at.long()
    high = (low + 1).clamp(max=31)
    x = images.float()
    x = x[..., low, :] * (1 - share)[:, None] + x[..., high, :] * share[:, None]
    x = x[..., low] * (1 - share) + x[..., high] * share
    network = extractor.network
    with monkeypatch.context() as patch:
        patch.setattr(inception, "interpolate_bilinear_2d_like_tensorflow1x", lambda *a, **k: x)
        torch.testing.assert_close(network(images)[0], features, rtol=1e-4, atol=1e-5)
    smooth = F.interpolate(images.float(), size=(299, 299), mode="bilinear", antialias=True)
    assert (smooth - x).abs().max() > 1

    grey = images[:, :1]
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    assert extractor.class_scores(features).shape == (2, 1008)
    fc = torch.load(weights, weights_only=True)["fc.weight"]
    torch.testing.assert_close(extractor.class_scores(features), features @ fc.T)


def test_a_file_of_other_tensors_is_refused(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"does not hold the weights of the extractor inception"):
        load(path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this was run",)


def test_nothing_in_a_file_is_run(
    tmp_path: Path, load: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"x": Malicious()}, path)
    with pytest.raises(ValueError, match=r"does not hold the weights"):
        load(path)
    assert "this was run" not in capsys.readouterr().out
