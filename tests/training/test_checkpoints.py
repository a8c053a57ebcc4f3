"""Checkpoints of sharded networks: the files of whole ones, into any number of processes and out again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from ddpm_hf import DDIMScheduler
from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.training.checkpoints import Checkpoints, TrainingState, averages_of, restore, what_is_broken
from ddpm_hf.training.ema import EMA
from tests.networks import TWO_LEVELS
from tests.runs import start_processes_of

STEPS = 4


def make_state(sharded: bool) -> TrainingState:
    torch.manual_seed(0)
    unet = UNet2DModel(**TWO_LEVELS, sample_size=8, layers_per_block=1)
    if sharded:
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet):
            fully_shard(block)
    # The bias of the keys has no gradient but rounding's, which a smaller eps would make into whole steps.
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3, eps=1e-4, fused=True)
    return TrainingState(unet, optimizer, EMA(unet.parameters(), [0.9, 0.5]), TimestepSampler(10))


def take_steps(state: TrainingState, stop: int, rank: int, processes: int) -> None:
    """Each process trains on its share of four images."""
    while state.step < stop:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(state.step))
        mine = x[rank * 4 // processes : (rank + 1) * 4 // processes]
        state.unet(mine, torch.tensor(10)).sample.square().mean().backward()
        nn.utils.clip_grad_norm_(state.unet.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.update()
        state.count_step(taken=True)


def train_sharded(folder: Path, load: bool) -> None:
    """In each of two processes: go on from the folder's checkpoint or from nothing, and save the next."""
    accelerator = Accelerator(cpu=True)
    state = make_state(sharded=True)
    checkpoints = Checkpoints(folder, 5, accelerator)
    if load:
        path, _ = checkpoints.find("auto")
        assert path is not None
        restore(path, state)
    rank, processes = accelerator.process_index, accelerator.num_processes
    take_steps(state, state.step + 2, rank, processes)
    draw_with_the_average(state, accelerator)
    take_steps(state, state.step + STEPS - 2, rank, processes)
    checkpoints.save(state, DDIMScheduler(), {})
    torch.distributed.destroy_process_group()


def draw_with_the_average(state: TrainingState, accelerator: Accelerator) -> None:
    """Three batches on two processes, which must change nothing of the training."""
    sampler = DDIMScheduler()
    sampler.set_timesteps(2)
    with state.ema.averaged_weights():
        shared = sample_images(state.unet, sampler, range(5), SamplingOptions(batch_size=2), accelerator=accelerator)
        averages = averages_of(state)  # swapped: the weights themselves
    assert shared.float().std() > 10
    weights = dict(state.unet.named_parameters())
    for named in list(averages.values())[:1]:
        for name, tensor in named.items():
            assert torch.equal(tensor, weights[name].full_tensor())  # type: ignore[operator]


def tensors_of(state: TrainingState) -> dict[str, Tensor]:
    weights = {name: parameter.detach() for name, parameter in state.unet.named_parameters()}
    moments = {
        f"{name}/{key}": value
        for name, p in state.unet.named_parameters()
        for key, value in state.optimizer.state[p].items()
    }
    averages = {f"{decay}/{name}": a for decay, named in averages_of(state).items() for name, a in named.items()}
    return {**weights, **moments, **averages}


def restored(path: Path) -> TrainingState:
    state = make_state(sharded=False)
    with torch.no_grad():
        for parameter in state.unet.parameters():
            parameter.zero_()
    restore(path, state)
    return state


def test_a_sharded_run_saves_and_loads_as_a_whole_one(tmp_path: Path) -> None:
    start_processes_of(2, train_sharded, tmp_path, False)
    assert what_is_broken(tmp_path / f"step-{STEPS}") is None

    whole = make_state(sharded=False)
    take_steps(whole, STEPS, 0, 1)
    one = restored(tmp_path / f"step-{STEPS}")  # saved by two processes, loaded by one
    assert (one.step, one.ema.num_updates) == (STEPS, STEPS)
    expected = tensors_of(whole)
    for name, tensor in tensors_of(one).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)

    start_processes_of(2, train_sharded, tmp_path, True)  # saved by two, loaded by two
    take_steps(whole, 2 * STEPS, 0, 1)
    take_steps(one, 2 * STEPS, 0, 1)
    expected, two = tensors_of(whole), tensors_of(restored(tmp_path / f"step-{2 * STEPS}"))
    for name, tensor in tensors_of(one).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(two[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("taken", [0, 2])
def test_a_state_goes_through_a_checkpoint_to_the_bit(tmp_path: Path, taken: int) -> None:
    state = make_state(sharded=False)
    state.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    take_steps(state, taken, 0, 1)
    state.count_step(taken=False)
    state.best = {"step": 1, "fid": 2.5}
    path = Checkpoints(tmp_path, 1, Accelerator(cpu=True)).save(state, DDIMScheduler(), {})
    other = restored(path)
    assert other.numbers() == state.numbers()
    expected: dict[str, Any] = tensors_of(state)
    found = tensors_of(other)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 1, Accelerator(cpu=True)).save(make_state(sharded=False), DDIMScheduler(), {})
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    other = TrainingState(
        unet, torch.optim.Adam(unet.parameters()), EMA(unet.parameters(), [0.9, 0.5]), TimestepSampler(10)
    )
    with pytest.raises(ValueError, match="is of another network than the one of these settings"):
        restore(path, other)
