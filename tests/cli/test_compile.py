"""Compiled where it pays: the same images, one shape for all passes, and a folder that is finished as it was begun."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.cli.drawing import sample
from ddpm_hf.cli.sample import SampleConfig
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.sampling import compiling
from ddpm_hf.sampling.compiling import is_worth_compiling, operations_of_a_pass

CLASSES = 3


def network() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, num_class_embeds=CLASSES + 1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    DDPMCustomPipeline(network(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass had; and torch.compile without the minutes of its compiler."""
    sizes, forward = [], UNet2DModel.forward

    def counted(self: UNet2DModel, sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(len(sample))
        return forward(self, sample, *arguments, **named)

    def compile_without_compiler(self: nn.Module, dynamic: bool) -> None:
        assert not dynamic, "one shape needs no code for others"
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(UNet2DModel, "forward", counted)
    monkeypatch.setattr(nn.Module, "compile", compile_without_compiler)
    return sizes


def draw(model: Path, folder: Path, **settings: Any) -> torch.Tensor:
    given = {"num_images": 10, "batch_size": 4, "num_inference_steps": 2, "class_labels": "0-2", "quiet": True}
    sample(SampleConfig(str(model), folder, **(given | settings)), Accelerator(cpu=True))
    return load_images(folder)


def recorded(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())["settings"].get("compile")


@pytest.mark.parametrize(("scale", "times"), [(1.0, 1), (2.0, 2)])
def test_all_passes_have_one_shape_and_the_images_are_the_same(
    model: Path, tmp_path: Path, passes: list[int], scale: float, times: int
) -> None:
    plain = draw(model, tmp_path / "plain", compile=False, guidance_scale=scale)
    assert set(passes) == {4 * times, 2 * times}
    assert recorded(tmp_path / "plain") is None
    passes.clear()
    compiled = draw(model, tmp_path / "compiled", compile=True, guidance_scale=scale)
    assert set(passes) == {4 * times}
    assert recorded(tmp_path / "compiled") is True
    assert compiled.shape == plain.shape
    assert (compiled.int() - plain.int()).abs().max() <= 1


def test_auto_compiles_where_it_pays_and_goes_on_as_a_folder_was_begun(
    model: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(model, tmp_path / "short")
    assert recorded(tmp_path / "short") is None
    monkeypatch.setitem(compiling.WORTH_COMPILING, "cpu", 10 * 2 * operations_of_a_pass(network()))
    draw(model, tmp_path / "long")
    assert recorded(tmp_path / "long") is True
    draw(model, tmp_path / "short")  # as it was
    assert recorded(tmp_path / "short") is None
    monkeypatch.setitem(compiling.WORTH_COMPILING, "cpu", 1e14)
    draw(model, tmp_path / "long")
    assert recorded(tmp_path / "long") is True
    with pytest.raises(ValueError, match=r"other settings \(compile true -> null\)"):
        draw(model, tmp_path / "long", compile=False)


def broken_compiler(self: nn.Module, dynamic: bool) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("No C++ compiler is here\nand more")

    self._compiled_call_impl = fail


def test_without_a_compiler_auto_draws_as_before_and_true_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = draw(model, tmp_path / "plain", compile=False)
    monkeypatch.setattr(nn.Module, "compile", broken_compiler)
    with pytest.raises(ValueError, match=r"cannot be compiled \(No C\+\+ compiler is here\); give --compile false"):
        draw(model, tmp_path / "true", compile=True)
    monkeypatch.setitem(compiling.WORTH_COMPILING, "cpu", 1)
    found = draw(model, tmp_path / "auto")
    assert torch.equal(found, plain)
    assert recorded(tmp_path / "auto") is None
    assert "Note: the network cannot be compiled" in capsys.readouterr().err


def operations_by_layer(unet: UNet2DModel, images: torch.Tensor) -> int:
    """Those of convolutions and linear layers, by their shapes."""
    found = []

    def note(layer: nn.Module, given: Any, output: torch.Tensor) -> None:
        weights = layer.weight.numel()
        found.append(2 * weights * (output.numel() // output.shape[1 if output.ndim == 4 else -1]))

    hooks = [layer.register_forward_hook(note) for layer in unet.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    unet(images, torch.tensor([0]), torch.tensor([0]))
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_operations_are_those_of_the_layers_and_some_for_attention() -> None:
    unet = network()
    by_layer = operations_by_layer(unet, torch.zeros(1, 1, 8, 8))
    assert 0.8 * by_layer < operations_of_a_pass(unet) < 1.1 * by_layer  # up-sampling takes 4/9 of its convolution


def test_a_device_of_which_nothing_is_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = network()
    assert is_worth_compiling(unet, 10**12)
    assert not is_worth_compiling(unet, 1)
    monkeypatch.delitem(compiling.WORTH_COMPILING, "cpu")
    assert not is_worth_compiling(unet, 10**12)


@pytest.mark.slow
def test_the_real_compiler_changes_no_image_by_more_than_a_level(model: Path, tmp_path: Path) -> None:
    plain = draw(model, tmp_path / "plain", compile=False)
    compiled = draw(model, tmp_path / "compiled", compile=True)
    assert recorded(tmp_path / "compiled") is True
    assert (compiled.int() - plain.int()).abs().max() <= 1
