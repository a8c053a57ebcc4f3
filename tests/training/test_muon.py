"""Muon is what its equations say, orthogonalises as the SVD does, and a run with it goes on bit for bit."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from ddpm_hf import UNet2DModel
from ddpm_hf.training.muon import Muon, orthogonalised
from ddpm_hf.training.optimization import OptimizerOptions, check_optimizer
from ddpm_hf.training.settings import TrainingConfig
from tests.runs import finished, measured, tensors_of


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (4, 32, 32), (1, 1, 20)])
def test_singular_values_go_to_one_and_vectors_stay(shape: tuple[int, int, int], rng: torch.Generator) -> None:
    matrices = torch.randn(shape, generator=rng)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    kept = (values > 0.01 * values[:, :1]).double()
    in_vectors = left.mT @ orthogonalised(matrices) @ right.mT
    found = in_vectors.diagonal(dim1=1, dim2=2)
    assert (kept * (found - 0.93).abs()).max() < 0.3  # the polynomial's own range: 0.67 .. 1.21
    assert (in_vectors - torch.diag_embed(found)).abs().max() < 1e-4


def test_the_shortcut_is_the_iteration(rng: torch.Generator) -> None:
    """Polynomials of the first S, in float32, against X <- a X + b S X + c S S X in float64."""
    matrices = torch.randn(2, 24, 60, generator=rng)
    x = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        s = x @ x.mT
        x = 3.4445 * x - 4.7750 * s @ x + 2.0315 * s @ s @ x
    assert torch.allclose(orthogonalised(matrices).double(), x, atol=2e-4)


def test_a_matrix_of_zeros_stays(rng: torch.Generator) -> None:
    assert not orthogonalised(torch.zeros(1, 3, 5)).any()


class Sizes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(4, 8, 3) for _ in range(2))
        self.linear = torch.nn.Linear(6, 4)
        self.unused = torch.nn.Linear(3, 3)


def gradients(module: torch.nn.Module, rng: torch.Generator) -> dict[str, Tensor]:
    named = dict(module.named_parameters())
    return {name: torch.randn(p.shape, generator=rng) for name, p in named.items() if not name.startswith("unused")}


def test_three_steps_are_the_equations_and_adamw(rng: torch.Generator) -> None:
    module = Sizes()
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    lr, beta, decay = 0.05, 0.9, 0.1
    vectors = [weight.requires_grad_() for weight in weights.values() if weight.ndim < 2]
    adam = torch.optim.AdamW(vectors, lr=lr, betas=(beta, 0.99), weight_decay=decay)
    optimizer = Muon(module.parameters(), OptimizerOptions(lr, (beta, 0.99), decay))
    for _ in range(3):
        found = gradients(module, rng)
        for name, gradient in found.items():
            module.get_parameter(name).grad = gradient.clone()
            weight = weights[name]
            if weight.ndim < 2:
                weight.grad = gradient
                continue
            momenta[name] = beta * momenta[name] + (1 - beta) * gradient
            flat = (beta * momenta[name] + (1 - beta) * gradient).flatten(1)
            step = 0.2 * lr * max(flat.shape) ** 0.5 * orthogonalised(flat[None])[0]
            weights[name] = (1 - lr * decay) * weight - step.view_as(weight)
        optimizer.step()
        adam.step()
    for name, parameter in module.named_parameters():
        assert torch.allclose(parameter, weights[name], atol=1e-6), name


def test_updates_are_as_large_as_adams(rng: torch.Generator) -> None:
    """Whatever the shape, their root mean square is about 0.2 of the learning rate."""
    module = Sizes()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for name, gradient in gradients(module, rng).items():
        module.get_parameter(name).grad = gradient
    Muon(module.parameters(), OptimizerOptions(1e-2, (0.9, 0.99), 0)).step()
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and not name.startswith("unused"):
            assert 0.7 < (parameter - before[name]).square().mean().sqrt() / 0.2e-2 < 1.15


MUON = ["--training.optimizer", "muon", "--training.steps", 8, "--training.checkpoint_every", 3]


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    unbroken = finished(tmp_path / "unbroken", *MUON)
    broken = tmp_path / "broken"
    finished(broken, *MUON)
    shutil.rmtree(broken / "checkpoints" / "step-8")
    finished(broken, *MUON)
    mine, theirs = tensors_of(broken, 8), tensors_of(unbroken, 8)
    assert sum("momentum" in name for name in mine) > 5
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert measured(broken) == measured(unbroken)


def test_shards_are_refused() -> None:
    sharded: Any = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"muon, which orthogonalises whole matrices.*adam or adamw"):
        check_optimizer(TrainingConfig(optimizer="muon"), sharded)
    check_optimizer(TrainingConfig(), sharded)


def test_every_weight_of_the_network_is_moved() -> None:
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 16), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    optimizer = Muon(unet.parameters(), OptimizerOptions(1e-2, (0.9, 0.99), 0))
    for _ in range(2):
        unet(torch.randn(2, 1, 8, 8), torch.tensor([3, 5])).sample.square().mean().backward()
        optimizer.step()
    same = [name for name, parameter in unet.named_parameters() if torch.equal(parameter, before[name])]
    assert not [name for name in same if "to_k.bias" not in name]  # which no output depends on
