"""Checkpoints of sharded networks: the files of whole ones, into any number of processes and out again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from ddpm_hf import DDIMScheduler
from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.files import sealed
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.training.checkpoint_files import STATE, what_is_broken
from ddpm_hf.training.checkpoints import (
    Checkpoints,
    TrainingState,
    averages_by_length,
    averages_of,
    restore,
    save_pipeline,
)
from ddpm_hf.training.ema import EMA
from tests.networks import TWO_LEVELS
from tests.runs import start_processes_of

STEPS = 4


def make_state(sharded: bool) -> TrainingState:
    torch.manual_seed(0)
    unet = UNet2DModel(**TWO_LEVELS, sample_size=8, layers_per_block=1)
    unet.add_augment_embedding(9)
    if sharded:
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet):
            fully_shard(block)
    # The bias of the keys has no gradient but rounding's, which a smaller eps would make into whole steps.
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3, eps=1e-4, fused=True)
    return TrainingState(unet, optimizer, EMA(unet.parameters(), [0.9, 0.5], [0.05, 0.2]), TimestepSampler(10))


def take_steps(state: TrainingState, stop: int, rank: int, processes: int) -> None:
    """Each process trains on its share of four images."""
    while state.step < stop:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(state.step))
        mine = slice(rank * 4 // processes, (rank + 1) * 4 // processes)
        state.unet(x[mine], torch.tensor(10), augment_labels=torch.eye(4, 9)[mine]).sample.square().mean().backward()
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
    by_key = averages_of(state) | averages_by_length(state)
    averages = {f"{key}/{name}": average for key, named in by_key.items() for name, average in named.items()}
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


def test_a_checkpoint_of_other_lengths_is_refused(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 1, Accelerator(cpu=True)).save(make_state(sharded=False), DDIMScheduler(), {})
    other = make_state(sharded=False)
    other.ema = EMA(other.unet.parameters(), [0.9, 0.5], [0.05, 0.1])
    with pytest.raises(ValueError, match=r"is of other training\.ema_sigma_rels than these settings"):
        restore(path, other)


def saved(folder: Path, steps: int = 2, limit: int = 5) -> tuple[Checkpoints, TrainingState]:
    """Checkpoints of steps 1, 2, ... of one state."""
    checkpoints, state = Checkpoints(folder, limit, Accelerator(cpu=True)), make_state(sharded=False)
    for step in range(1, steps + 1):
        take_steps(state, step, 0, 1)
        checkpoints.save(state, DDIMScheduler(), {"config": {"seed": 0}})
    return checkpoints, state


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


FILES = (
    "training/weights",
    "training/optimizer",
    "training/averages",
    "unet/diffusion_pytorch_model",
    "unet/diffusion_pytorch_model.ema0_5",
)


@pytest.mark.parametrize("place", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("file", FILES)
def test_one_wrong_bit_anywhere_leads_to_the_older_checkpoint(tmp_path: Path, file: str, place: float) -> None:
    checkpoints, _ = saved(tmp_path)
    flip(tmp_path / "step-2" / f"{file}.safetensors", place)
    found, notes = checkpoints.find("auto")
    assert found == tmp_path / "step-1"
    assert notes == [
        f"{tmp_path / 'step-2'} is damaged (the content of its {file}.safetensors has changed since it was saved) and "
        "is left aside"
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state | {"step": 3}, "has changed since it was saved"),
        (lambda state: state | {"ema_updates": 0}, "has changed since it was saved"),
        (lambda state: state | {"record": {"config": {"seed": 1}}}, "has changed since it was saved"),
        (lambda state: [state], "is of another form"),
        (lambda state: {k: v for k, v in state.items() if k != "record"}, "is of another form"),
        (lambda state: {k: v for k, v in state.items() if k != "xxh3_128"} | {"step": 3}, "is of step 3"),
        (lambda state: sealed(state | {"files": {"../../secret": [1, ""]}}), "is of another form"),
        (lambda state: sealed(state | {"files": ["a"]}), "is of another form"),
        (lambda state: 7, "is of another form"),
    ],
)
def test_a_state_of_another_form_or_content_is_damaged(tmp_path: Path, change: Any, why: str) -> None:
    checkpoints, _ = saved(tmp_path)
    path = tmp_path / "step-2" / STATE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    found, notes = checkpoints.find("auto")
    assert found == tmp_path / "step-1"
    assert why in notes[0]
    with pytest.raises(ValueError, match=why):
        checkpoints.find(str(tmp_path / "step-2"))


def test_a_checkpoint_of_an_earlier_version_has_sizes_only(tmp_path: Path) -> None:
    checkpoints, state = saved(tmp_path, steps=1)
    path = tmp_path / "step-1" / STATE
    content = json.loads(path.read_text())
    del content["xxh3_128"]
    content["files"] = {name: size for name, (size, _) in content["files"].items() if not name.endswith("hashes.json")}
    (tmp_path / "step-1" / "unet" / "hashes.json").unlink()
    path.write_text(json.dumps(content))
    assert checkpoints.find("auto") == (tmp_path / "step-1", [])
    assert restored(tmp_path / "step-1").numbers() == state.numbers()


def test_a_run_never_starts_over_its_damaged_checkpoints(tmp_path: Path) -> None:
    checkpoints, _ = saved(tmp_path)
    for step in (1, 2):
        flip(tmp_path / f"step-{step}" / "training" / "weights.safetensors", 0.5)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is intact, .*step-2 is damaged.*--resume never"):
        checkpoints.find("auto")
    assert checkpoints.find("never") == (None, [])


def test_a_file_that_no_resume_reads_keeps_no_run_from_going_on(tmp_path: Path) -> None:
    checkpoints, state = saved(tmp_path)
    (tmp_path / "step-2" / "model_index.json").unlink()
    found, notes = checkpoints.find("auto")
    assert found == tmp_path / "step-2"
    assert notes == [f"{found} can be resumed from, though its model_index.json is missing"]
    assert restored(found).numbers() == state.numbers()


def test_the_limit_removes_no_intact_checkpoint_for_a_damaged_one(tmp_path: Path) -> None:
    """A run that went on from step 1, because that of step 3 is damaged, saves step 2, which must then stay."""
    checkpoints, state = saved(tmp_path, steps=1, limit=1)
    saved(tmp_path / "later", steps=3)
    (tmp_path / "later" / "step-3").rename(tmp_path / "step-3")
    flip(tmp_path / "step-3" / "training" / "weights.safetensors", 0.5)
    take_steps(state, 2, 0, 1)
    checkpoints.save(state, DDIMScheduler(), {})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-2", "step-3"]
    assert checkpoints.find("auto")[0] == tmp_path / "step-2"


@pytest.mark.parametrize("what", ["weight", "average", "average of a length", "moment"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, what: str, value: float) -> None:
    """With room for one checkpoint, the good one stays."""
    checkpoints, state = saved(tmp_path, steps=1, limit=1)
    take_steps(state, 2, 0, 1)
    parameter = state.unet.mid_block.resnets[0].conv1.weight  # type: ignore[union-attr]
    ruined = {
        "weight": parameter,
        "average": state.ema.averages[0.5][3],
        "average of a length": state.ema.by_length[0.2][3],
        "moment": state.optimizer.state[parameter]["exp_avg"],
    }[what]
    with torch.no_grad():
        ruined.view(-1)[5] = value
    with pytest.raises(FloatingPointError, match=r"step 2 was not saved .* no longer finite; intact there: step-1; "):
        checkpoints.save(state, DDIMScheduler(), {})
    assert checkpoints.find("auto") == (tmp_path / "step-1", [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_no_pipeline_is_written_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = make_state(sharded=False)
    state.ema.averages[0.9][0].view(-1)[0] = torch.nan
    with pytest.raises(FloatingPointError, match="no longer finite"):
        save_pipeline(tmp_path / "best", state.unet, averages_of(state), DDIMScheduler())
    assert not (tmp_path / "best").exists()


def _look_while_another_run_writes(folder: Path) -> None:
    """The second process looks at a disk on which the checkpoint has just been removed."""
    accelerator = Accelerator(cpu=True)
    if accelerator.process_index == 1:
        folder = folder / "elsewhere"
    found = Checkpoints(folder, 5, accelerator).find("auto")[0]
    assert found is not None
    assert found.name == "step-2"
    torch.distributed.destroy_process_group()


def test_the_main_process_decides_what_is_resumed(tmp_path: Path) -> None:
    saved(tmp_path)
    start_processes_of(2, _look_while_another_run_writes, tmp_path)
