"""guided-diffusion's noisy classifiers, against an oracle that is written from their layout."""

from pathlib import Path

import pytest
import torch

from ddpm_hf.conversion.classifiers import classifier_without_memory
from ddpm_hf.conversion.openai_flags import PUBLISHED_CLASSIFIERS, classifier_settings
from ddpm_hf.models.noisy_classifier import NoisyClassifier
from tests.conversion_files import refusal, run
from tests.openai_peer import OpenAINetwork

FLAGS = "--image_size 64 --classifier_width 32 --classifier_depth 1 --classifier_attention_resolutions 8"
PEER = OpenAINetwork(
    *(32, (32, 64, 96, 128), 1, frozenset({3})), heads=(1, 1, 1, 2), is_residual=True, answers=1000, last_pixels=64
)


def test_it_answers_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = PEER.weights()
    torch.save(weights, tmp_path / "model.pt")
    (tmp_path / "flags.txt").write_text(f'CLASSIFIER_FLAGS="{FLAGS}"')
    run(tmp_path / "model.pt", tmp_path / "classifier", "--recipe", tmp_path / "flags.txt")
    assert f"a NoisyClassifier of {PEER.parameters():,} parameters" in capsys.readouterr().out
    classifier = NoisyClassifier.from_pretrained(tmp_path / "classifier").double()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([3, 421])
    wanted = PEER.forward({key: tensor.double() for key, tensor in weights.items()}, x, t)
    assert wanted.std() > 0.3
    assert (classifier(x, t) - wanted).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"images of \(3, 32, 32\) and knows those of \(3, 64, 64\)"):
        classifier(x[:, :, :32, :32], t)


# Of these sizes the paper states 65, 43, 54 and 54 million parameters.
@pytest.mark.parametrize(
    ("name", "levels", "attended", "depth", "last", "millions"),
    [
        ("64x64_classifier", (128, 256, 384, 512), {1, 2, 3}, 4, 64, 65),
        ("128x128_classifier", (128, 128, 256, 384, 512), {2, 3, 4}, 2, 64, 43),
        ("256x256_classifier", (128, 128, 256, 256, 512, 512), {3, 4, 5}, 2, 64, 54),
        ("512x512_classifier", (64, 128, 128, 256, 256, 512, 512), {4, 5, 6}, 2, 64, 54),
    ],
)
def test_the_published_are_built_with_their_parameters(
    name: str, levels: tuple[int, ...], attended: set[int], depth: int, last: int, millions: int
) -> None:
    peer = OpenAINetwork(
        *(128, levels, depth, frozenset(attended)), heads=(), is_residual=True, answers=1000, last_pixels=last
    )
    classifier = classifier_without_memory(classifier_settings(PUBLISHED_CLASSIFIERS[name]))
    assert sum(weight.numel() for weight in classifier.parameters()) == peer.parameters()
    assert abs(peer.parameters() / 1e6 - millions) < 1


def test_what_is_no_such_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(PEER.weights(), tmp_path / "64x64_classifier.pt")
    asked = (tmp_path / "64x64_classifier.pt", tmp_path / "folder")
    assert refusal(capsys, *asked).endswith("such as --recipe 64x64_classifier")
    said = refusal(capsys, *asked, "--recipe", "64x64_classifier")
    assert "not a whole guided-diffusion classifier of 307 keys that the recipe describes" in said
    assert "is no recipe of a classifier" in refusal(capsys, *asked, "--recipe", "256x256_diffusion")
    assert "leave --to out" in refusal(capsys, *asked, "--to", "ddpm-torch")
    (tmp_path / "flags.txt").write_text(f"{FLAGS} --classifier_pool spatial")
    assert "has --classifier_pool spatial" in refusal(capsys, *asked, "--recipe", tmp_path / "flags.txt")
    assert not (tmp_path / "folder").exists()
