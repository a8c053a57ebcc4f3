"""Fused layers: the numbers and gradients of the operations that they stand for, and less kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_hf.models.fused import ActivatedGroupNorm, ConvOfRepeatedPixels, Dropout


@pytest.fixture
def norm(rng: torch.Generator) -> ActivatedGroupNorm:
    norm = ActivatedGroupNorm(2, 4, 1e-3, nn.SiLU()).double()
    nn.init.normal_(norm.weight, generator=rng)
    nn.init.normal_(norm.bias, generator=rng)
    return norm


def plain(norm: ActivatedGroupNorm, x: torch.Tensor) -> torch.Tensor:
    """The two operations."""
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_first_and_second_derivatives(
    norm: ActivatedGroupNorm, layout: torch.memory_format, rng: torch.Generator
) -> None:
    x = torch.randn(2, 4, 3, 2, generator=rng, dtype=torch.float64).to(memory_format=layout).requires_grad_()

    def call(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return norm(x)  # type: ignore[no-any-return]

    torch.testing.assert_close(norm(x), plain(norm, x), rtol=0, atol=0)
    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias))
    assert torch.autograd.gradgradcheck(call, (x, norm.weight, norm.bias))


@pytest.mark.parametrize("frozen", ["x", "norm"])
def test_only_what_is_asked_for_has_a_gradient(norm: ActivatedGroupNorm, frozen: str, rng: torch.Generator) -> None:
    x = torch.randn(2, 4, 3, 2, generator=rng, dtype=torch.float64)
    results = []
    for call in (nn.Module.__call__, plain):
        inputs = [x.clone().requires_grad_(frozen != "x"), *norm.requires_grad_(frozen != "norm").parameters()]
        call(norm, inputs[0]).square().sum().backward()
        results.append([tensor.grad for tensor in inputs])
        norm.zero_grad()
    for ours, expected in zip(*results, strict=True):
        assert (ours is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_as_without(
    norm: ActivatedGroupNorm, weights: torch.dtype, autocast: bool, rng: torch.Generator
) -> None:
    norm = norm.to(weights)
    results = []
    for call in (nn.Module.__call__, plain):
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = call(norm, x)
        y.square().sum().backward()
        results.append([y, x.grad, norm.weight.grad, norm.bias.grad])
        norm.zero_grad()
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


def test_keeps_only_its_input(norm: ActivatedGroupNorm, rng: torch.Generator) -> None:
    x = torch.randn(2, 4, 8, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        norm(x)
    assert [tensor.shape for tensor in kept] == [x.shape, norm.weight.shape, norm.bias.shape]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Mish()], ids=str)
def test_other_activations(activation: nn.Module, rng: torch.Generator) -> None:
    x = torch.randn(2, 4, 3, 2, generator=rng)
    torch.testing.assert_close(ActivatedGroupNorm(2, 4, 1e-5, activation)(x), activation(F.group_norm(x, 2)))


def test_dropout_drops_the_same_numbers_and_keeps_a_byte_of_each(rng: torch.Generator) -> None:
    x = torch.randn(2, 4, 8, 8, generator=rng, requires_grad=True)
    torch.manual_seed(0)
    expected = nn.Dropout(0.3)(x)
    torch.manual_seed(0)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        ours = Dropout(0.3)(x)
    assert torch.equal(ours, expected)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, expected)))
    assert [tensor.dtype for tensor in kept] == [torch.bool]
    for off in (Dropout(0.3).eval(), Dropout(0.0)):
        assert off(x) is x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_repeated_pixels(layout: torch.memory_format, rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 3, 2, generator=rng, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    conv = ConvOfRepeatedPixels(3, 5).double().to(memory_format=layout)
    repeated = F.interpolate(x, scale_factor=2.0, mode="nearest")
    outputs = conv(x), F.conv2d(repeated, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(*outputs)
    towards = torch.randn(outputs[0].shape, generator=rng, dtype=torch.float64)
    ours, expected = (torch.autograd.grad(y, (x, conv.weight, conv.bias), towards) for y in outputs)
    torch.testing.assert_close(ours, expected)
