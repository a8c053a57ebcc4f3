"""The UNet's own contracts: size, files, errors, and the ways in which people run it."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf.files import HASHES
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.models.unet_2d_blocks import Attention, attend
from tests.networks import TWO_LEVELS

CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "attention_head_dim": None,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
}
TINY: dict[str, Any] = {**TWO_LEVELS, "sample_size": 8}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**TINY).eval()


@pytest.fixture
def x(rng: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=rng)


def assert_same_weights(a: UNet2DModel, b: UNet2DModel) -> None:
    state, expected = a.state_dict(), b.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)


def test_google_ddpm_cifar10_32_has_its_parameters() -> None:
    with torch.device("meta"):
        model = UNet2DModel(**CIFAR10)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    assert len(model.state_dict()) == 328


def test_defaults_are_diffusers() -> None:
    with torch.device("meta"):
        ours, theirs = UNet2DModel().config, diffusers.UNet2DModel().config
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}


def test_files_go_both_ways(unet: UNet2DModel, x: torch.Tensor, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path / "ours")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again, info = UNet2DModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == []
    assert_same_weights(again, unet)
    torch.testing.assert_close(again(x, 3).sample, unet(x, 3).sample)
    half = UNet2DModel.from_pretrained(tmp_path / "theirs", dtype=torch.bfloat16)
    assert half(x.bfloat16(), 3).sample.dtype == torch.bfloat16


def test_loaded_weights_compute_the_same_bits(unet: UNet2DModel, x: torch.Tensor, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    assert all(weight.data_ptr() % 64 == 0 for weight in loaded.parameters()), "as mapped from the file, not aligned"
    assert torch.equal(loaded(x, 500).sample, unet(x, 500).sample)


def test_old_attention_names_load(unet: UNet2DModel, tmp_path: Path) -> None:
    """query, key, value and proj_attn of checkpoints such as google/ddpm-cifar10-32, by diffusers' private hook."""
    unet.save_pretrained(tmp_path)
    (tmp_path / HASHES).unlink()  # another file is put there on purpose
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in load_file(tmp_path / WEIGHTS).items():
        for new_name, old_name in old_names.items():
            key = key.replace(f".{new_name}.", f".{old_name}.")
        old[key] = tensor
    assert any(".proj_attn." in key for key in old)
    save_file(old, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert_same_weights(UNet2DModel.from_pretrained(tmp_path), unet)


def test_a_checkpoint_of_another_model_is_refused(unet: UNet2DModel, tmp_path: Path) -> None:
    """diffusers logs a missing parameter, and then computes with memory that nobody wrote."""
    unet.save_pretrained(tmp_path)
    (tmp_path / HASHES).unlink()
    state = load_file(tmp_path / WEIGHTS)
    del state["conv_in.weight"]
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not hold this UNet: 1 missing keys \(conv_in.weight"):
        UNet2DModel.from_pretrained(tmp_path)
    state = {**state, "conv_in.weight": unet.conv_in.weight, "mid_block.more": torch.zeros(1)}
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not hold this UNet: 1 unexpected keys \(mid_block.more"):
        UNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_weights_of_another_shape_are_refused(unet: UNet2DModel, tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    """diffusers' ignore_mismatched_sizes, either way of loading, gives parameters that nobody initialized."""
    unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 mismatched keys \(conv_out\.bias, conv_out\.weight\)"):
        UNet2DModel.from_pretrained(
            tmp_path, out_channels=6, ignore_mismatched_sizes=True, low_cpu_mem_usage=low_cpu_mem_usage
        )


def test_pickled_weights_are_not_read(unet: UNet2DModel, tmp_path: Path) -> None:
    diffusers.UNet2DModel(**TINY).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        UNet2DModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors=False asks for pickled weights"):
        UNet2DModel.from_pretrained(tmp_path, use_safetensors=False)


def test_a_missing_variant_is_refused_in_diffusers_words(unet: UNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path, variant="ema")
    assert_same_weights(UNet2DModel.from_pretrained(tmp_path, variant="ema"), unet)
    with pytest.raises(OSError, match=r"Error no file named diffusion_pytorch_model\.bin found in directory"):
        UNet2DModel.from_pretrained(tmp_path)


def test_pickled_weights_are_not_written(unet: UNet2DModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unet.save_pretrained(tmp_path, safe_serialization=False)
    assert "safe_serialization=False is ignored" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", HASHES, WEIGHTS}
    assert_same_weights(UNet2DModel.from_pretrained(tmp_path), unet)


@pytest.mark.parametrize("pixels", [16, 24, 25])
def test_attention_is_that_of_the_equation(pixels: int) -> None:
    """On both sides of the number of pixels from which on the fused kernel does it."""
    q, k, v = (torch.randn(2, 3, pixels, 24, dtype=torch.float64) for _ in range(3))
    weights = torch.einsum("bhic,bhjc->bhij", q, k) / 24**0.5
    wanted = torch.einsum("bhij,bhjc->bhic", weights.exp() / weights.exp().sum(dim=3, keepdim=True), v)
    assert (attend(q, k, v) - wanted).abs().max() < 1e-14


def test_gradient_checkpointing_changes_nothing(x: torch.Tensor) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(**TINY, dropout=0.2).train()
    gradients = []
    for enabled in (False, True):
        if enabled:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(1)  # the same dropout, again in the second forward
        unet(x, 3).sample.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in unet.named_parameters()})
        unet.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_channels_last(unet: UNet2DModel, x: torch.Tensor) -> None:
    expected = unet(x, 3).sample
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = unet(x.to(memory_format=torch.channels_last), 3).sample
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Casts(TorchDispatchMode):
    """The shapes of the tensors that are cast."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(arguments[0].shape))
        return function(*arguments, **(options or {}))


def test_attention_casts_its_pixels_once_under_autocast(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    attention, x = Attention(8, None, None, 1e-5), torch.randn(2, 8, 3, 5, generator=rng)

    def run() -> tuple[torch.Tensor, int]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            return attention(x), sum(shape[0] == 2 and len(shape) > 2 for shape in casts.shapes)

    once, count = run()
    assert count == 1
    assert attention(x).dtype == torch.float32
    monkeypatch.setattr("ddpm_hf.models.unet_2d_blocks.cast_as_autocast_would", lambda x: x)
    by_each, count = run()
    assert count == 3
    assert torch.equal(once, by_each)


def test_autocast_stays_near(unet: UNet2DModel, x: torch.Tensor) -> None:
    expected = unet(x, 3).sample
    with torch.autocast("cpu", torch.bfloat16):
        got = unet(x, 3).sample
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_into_one_graph(unet: UNet2DModel, x: torch.Tensor, checkpointing: bool) -> None:
    """Without a break, with gradients. (The backend that only traces: a code generator needs a compiler.)"""
    t = torch.tensor([3, 500])
    if checkpointing:
        unet.enable_gradient_checkpointing()
    compiled: Any = torch.compile(unet, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t).sample, unet(x, t).sample)
    compiled(x, t).sample.sum().backward()
    assert unet.conv_in.weight.grad is not None


@pytest.mark.slow
def test_compiles_with_inductor(unet: UNet2DModel, x: torch.Tensor) -> None:
    t = torch.tensor([3, 500])
    compiled: Any = torch.compile(unet, fullgraph=True)
    torch.testing.assert_close(compiled(x, t).sample, unet(x, t).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "Nope")}, "down_block_types='Nope' is not known; use one of DownBlock2D"),
        ({"up_block_types": ("UpBlock2D", "Nope")}, "up_block_types='Nope' is not known; use one of UpBlock2D"),
        ({"mid_block_type": "Nope"}, "mid_block_type='Nope' is not known; use one of UNetMidBlock2D, None"),
        ({"act_fn": "tanh"}, "act_fn='tanh' is not known; use one of silu"),
        ({"time_embedding_type": "nope"}, "time_embedding_type='nope' is not known"),
        ({"class_embed_type": "nope"}, "class_embed_type='nope' is not known"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift='ada_group' is not known"),
        ({"downsample_type": "fir"}, "downsample_type='fir' is not known; use one of conv, resnet"),
        (
            {"block_out_channels": (8, 16, 16)},
            "block_out_channels has 3 levels, down_block_types 2 and up_block_types 2",
        ),
        (
            {"block_out_channels": (), "down_block_types": (), "up_block_types": ()},
            "block_out_channels has 0 levels, down_block_types 0 and up_block_types 0; give",
        ),
        ({"downsample_padding": 2}, "downsample_padding=2 is not known; use one of 0, 1"),
        ({"norm_num_groups": 5}, "block_out_channels has 8, not a multiple of norm_num_groups=5"),
        ({"norm_num_groups": None}, "norm_num_groups=None must be a whole number"),
        ({"attn_norm_num_groups": 5}, "block_out_channels has 16, not a multiple of attn_norm_num_groups=5"),
        ({"attention_head_dim": 32}, "attention_head_dim=32 does not fit into 16 of block_out_channels"),
        ({"layers_per_block": 0}, "layers_per_block=0 must be 1 or more"),
        ({"block_out_channels": (8, -16)}, r"block_out_channels=\[8, -16\] must be 1 or more, and at most"),
        ({"norm_num_groups": -4}, "block_out_channels has 8, not a multiple of norm_num_groups=-4"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor=0 must be from 0.0001 to 10,000"),
        ({"freq_shift": 4}, "freq_shift=4 divides by zero or less with block_out_channels that begin with 8"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"sample_size": (8, 0)}, r"sample_size=\(8, 0\) must be a side"),
        ({"num_class_embeds": 0}, "num_class_embeds=0 must be 1 or more, and at most 10,000,000, or None"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
        ({"time_embedding_type": "learned"}, "time_embedding_type='learned' needs num_train_timesteps"),
        ({"freq_shift": 9}, "freq_shift=9 divides by zero or less with block_out_channels that begin with 8"),
        ({"mid_block_scale_factor": math.nan}, "mid_block_scale_factor=nan must be a number"),
        ({"sample_size": 1_000_000}, "sample_size=1000000 must be a side, or height and width, of 1 to 16,384 pixels"),
        ({"sample_size": (8, 8, 8)}, r"sample_size=\(8, 8, 8\) must be a whole number or a list of 2 whole numbers"),
        ({"layers_per_block": "2"}, "layers_per_block='2' must be a whole number"),
        ({"add_attention": 1}, "add_attention=1 must be true or false"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**{**TINY, **change})


def test_fourier_features_have_no_timestep_0(x: torch.Tensor) -> None:
    """diffusers' network takes the logarithm of t and divides by t as well, and gives what is no number."""
    config = {**TINY, "time_embedding_type": "fourier"}
    assert not diffusers.UNet2DModel(**config)(x, 0).sample.isfinite().any()
    unet = UNet2DModel(**config)
    assert unet(x, 1).sample.isfinite().all()
    for t in (0, torch.tensor([3, 0])):
        with pytest.raises(ValueError, match="the timestep 0, and time_embedding_type='fourier' takes its logarithm"):
            unet(x, t)


def test_a_learned_embedding_knows_its_own_timesteps(x: torch.Tensor) -> None:
    unet = UNet2DModel(**TINY, time_embedding_type="learned", num_train_timesteps=10)
    assert unet(x, 9).sample.isfinite().all()
    with pytest.raises(ValueError, match=r"the timestep 10, and time_embedding_type='learned' knows 0 .. 9"):
        unet(x, 10)
    with pytest.raises(ValueError, match="knows whole timesteps only"):
        unet(x, 2.5)


def test_bad_inputs(unet: UNet2DModel, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a sample of shape \(2, 1, 8, 8\); expected \(batch, 3, height, width\)"):
        unet(x[:, :1], 3)
    with pytest.raises(ValueError, match=r"images of 7x8; with its 2 levels height and width must be multiples of 2"):
        unet(x[:, :, :7], 3)
    with pytest.raises(ValueError, match="timestep has 3 entries for 2 images"):
        unet(x, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="class_labels were given to a UNet without classes"):
        unet(x, 3, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="this UNet is class-conditional; give class_labels"):
        UNet2DModel(**TINY, num_class_embeds=3)(x, 3)
    with pytest.raises(ValueError, match="3 class_labels came with 2 images"):
        UNet2DModel(**TINY, num_class_embeds=3)(x, 3, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("place", [0, 3, 100, -1])
def test_one_wrong_bit_in_the_weights_is_told(unet: UNet2DModel, tmp_path: Path, place: int) -> None:
    """In the length of the header, the header, and the numbers."""
    unet.save_pretrained(tmp_path)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[place] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is damaged: .* remove .*hashes.json"):
        UNet2DModel.from_pretrained(tmp_path)
    (tmp_path / HASHES).write_text("[]")
    with pytest.raises(ValueError, match=r"hashes.json is no list of hashes"):
        UNet2DModel.from_pretrained(tmp_path)


def test_each_variant_has_its_hash(unet: UNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    unet.save_pretrained(tmp_path, variant="ema0_5")
    assert len(json.loads((tmp_path / HASHES).read_text())) == 2
    assert_same_weights(UNet2DModel.from_pretrained(tmp_path, variant="ema0_5"), unet)
