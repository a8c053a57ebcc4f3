"""Our UNet2DModel against diffusers': the same weights from the same seed, the same outputs and gradients."""

from typing import Any

import diffusers
import pytest
import torch

from ddpm_hf.models.unet_2d import UNet2DModel
from tests.networks import TWO_LEVELS

TINY: dict[str, Any] = {**TWO_LEVELS, "layers_per_block": 1}
EVERYWHERE = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
NOWHERE = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
RESIDUAL = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (8, 8, 16),
}
GUIDED_DIFFUSION: dict[str, Any] = {
    **RESIDUAL,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 4,
    "attention_head_dim": 4,
    "num_class_embeds": 5,
    "out_channels": 6,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "heads_of_8": {},
    "one_head": {"attention_head_dim": None},
    "heads_of_3_in_16_channels": {"attention_head_dim": 3},
    "attention_everywhere": EVERYWHERE,
    "attention_nowhere": {**NOWHERE, "add_attention": False},
    "no_middle": {"mid_block_type": None},
    "middle_scaled": {"mid_block_scale_factor": 1.4142, "attn_norm_num_groups": 2},
    "two_layers": {"layers_per_block": 2},
    "three_levels": {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "odd_channels": {"block_out_channels": (9, 15), "norm_num_groups": 3, "attention_head_dim": 5},
    "padding_0": {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False},
    "resnet_sampling": {**EVERYWHERE, "downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet_sampling_without_attention": {**NOWHERE, "downsample_type": "resnet", "upsample_type": "resnet"},
    "residual_sampling_blocks": RESIDUAL,
    "residual_sampling_blocks_with_scale_shift": {**RESIDUAL, "resnet_time_scale_shift": "scale_shift"},
    "guided_diffusion": GUIDED_DIFFUSION,
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_with_attention_norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "fourier": {"time_embedding_type": "fourier"},
    "learned_time": {"time_embedding_type": "learned", "num_train_timesteps": 100},
    "time_embedding_dim": {"time_embedding_dim": 20},
    "mish": {"act_fn": "mish"},
    "gelu": {"act_fn": "gelu", "norm_eps": 1e-3},
    "relu": {"act_fn": "relu"},
    "centered": {"center_input_sample": True},
    "grey": {"in_channels": 1, "out_channels": 1},
    "learned_variance": {"out_channels": 6},
    "classes": {"num_class_embeds": 5},
    "class_timestep": {"class_embed_type": "timestep"},
    "class_identity": {"class_embed_type": "identity"},
}


def pair(**config: Any) -> tuple[UNet2DModel, Any]:
    models = []
    for cls in (UNet2DModel, diffusers.UNet2DModel):
        torch.manual_seed(0)
        models.append(cls(**config))
    return models[0], models[1]


def run(
    model: Any, height: int, width: int, t: Any, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of a random projection of it for the input and every parameter."""
    model = model.to(dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, model.config.in_channels, height, width, generator=generator, dtype=dtype).requires_grad_()
    labels = None
    if model.config.class_embed_type == "identity":
        labels = torch.randn(2, 32, generator=generator, dtype=dtype)
    elif model.config.class_embed_type == "timestep" or model.config.num_class_embeds:
        labels = torch.tensor([1, 4])
    output = model(x, t, labels).sample
    output.backward(torch.randn(output.shape, generator=generator, dtype=dtype))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), {"input": x.grad, **gradients}


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, scale: float = 0.0) -> None:
    """Relative to the largest number of the tensor, or to `scale` if that is larger."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(theirs.abs().max().item(), scale))


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Some gradients are zero but for rounding (keys' biases), so 1% of the largest gradient is the least scale."""
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    for key, gradient in ours.items():
        assert_same(gradient, theirs[key], tolerance, scale=0.01 * largest)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_outputs_and_gradients(name: str) -> None:
    ours, theirs = pair(**{**TINY, **CONFIGS[name]})
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        if dtype is torch.float64 and name == "class_timestep":
            continue  # diffusers feeds the class's float32 embedding to float64 weights, which fails
        t = torch.tensor([3, 40])
        output, gradients = run(ours, 8, 8, t, dtype)
        expected_output, expected_gradients = run(theirs, 8, 8, t, dtype)
        assert_same(output, expected_output, tolerance)
        assert_same_gradients(gradients, expected_gradients, tolerance)
        ours.zero_grad()
        theirs.zero_grad()


@pytest.mark.parametrize("t", [7, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 9]), torch.tensor(7.5)], ids=str)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 6)])
def test_shapes_and_times(height: int, width: int, t: Any) -> None:
    ours, theirs = pair(**TINY)
    output, gradients = run(ours, height, width, t, torch.float32)
    expected_output, expected_gradients = run(theirs, height, width, t, torch.float32)
    assert_same(output, expected_output, 1e-5)
    assert_same_gradients(gradients, expected_gradients, 1e-5)


def test_cifar10_configuration() -> None:
    """At the size that people use: google/ddpm-cifar10-32's, one image."""
    from tests.models.test_unet_2d import CIFAR10

    ours, theirs = pair(**CIFAR10)
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert_same(ours(x, 500).sample, theirs(x, 500).sample, 1e-5)


def test_names_of_blocks_before_0_1_are_read() -> None:
    old = {key: tuple(f"UNetRes{name}" for name in TINY[key]) for key in ("down_block_types", "up_block_types")}
    ours, theirs = pair(**{**TINY, **old})
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 500])
    torch.testing.assert_close(ours(x, t).sample, theirs(x, t).sample, rtol=1e-4, atol=1e-5)
