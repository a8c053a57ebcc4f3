"""Copies to a CUDA device and back, by stand-ins for it: what is pinned, and what waits for what."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_hf.data.augmentation import Augmentation
from ddpm_hf.data.batches import Batches, ClassLabels
from ddpm_hf.data.sources import ImageData
from ddpm_hf.diffusion.timestep_sampling import HISTORY, ImportanceTimesteps, TimestepSampler
from ddpm_hf.transfers import Fetched, SideStream, uploaded

CUDA = torch.device("cuda")


class Stream:
    """As much of torch.cuda.Stream as notes what is asked of it."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.device, self.said = name, CUDA, said

    def wait_stream(self, other: "Stream") -> None:
        self.said.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.said.append(f"on {self.name}")

    def __exit__(self, *_: Any) -> None:
        self.said.append(f"off {self.name}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a CUDA device would be asked; its tensors are those of the host."""
    noted: list[str] = []
    pinned: list[int] = []
    to: Callable[..., Tensor] = Tensor.to

    def pin(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        pinned.append(copy.data_ptr())
        return copy

    def copied(tensor: Tensor, *arguments: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        if CUDA not in (*arguments, options.get("device")):
            return to(tensor, *arguments, non_blocking=non_blocking, **options)
        noted.append("copy" if non_blocking and tensor.data_ptr() in pinned else "copy that is waited for")
        return tensor

    user = Stream("user", noted)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", copied)
    monkeypatch.setattr(Tensor, "record_stream", lambda _, stream: noted.append(f"kept for {stream.name}"))
    monkeypatch.setattr("torch.cuda.Stream", lambda device: Stream("side", noted))
    monkeypatch.setattr("torch.cuda.current_stream", lambda device=None: user)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: stream)
    monkeypatch.setattr("ddpm_hf.pixels._columns", lambda *_: (torch.zeros(1, 1, 1), torch.full((1, 1, 1), 127.5)))
    return noted


def test_only_what_goes_to_a_cuda_device_is_pinned(said: list[str]) -> None:
    tensor = torch.arange(3)
    assert uploaded(tensor, torch.device("cpu")) is tensor
    assert uploaded(tensor, torch.device("meta")).device.type == "meta"
    assert said == []
    assert torch.equal(uploaded(tensor, CUDA), tensor)
    assert said == ["copy"]


def test_without_cuda_a_side_stream_is_nothing() -> None:
    side = SideStream(torch.device("cpu"))
    with side.used():
        side.catch_up()
        side.hand_over([torch.ones(1), None])


@pytest.mark.parametrize("timesteps", [TimestepSampler(4), ImportanceTimesteps(4)], ids=["plain", "learning"])
def test_a_batch_goes_to_cuda_beside_its_work_and_nothing_waits(timesteps: TimestepSampler, said: list[str]) -> None:
    accelerator: Any = SimpleNamespace(num_processes=1, process_index=0, gradient_accumulation_steps=1, device=CUDA)
    data = ImageData("noise", torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8))
    augmentation = Augmentation(flip=True, flip_vertical=True, rotation=True, probability=0.5)
    labels = ClassLabels(0.5, 8)
    batches = Batches(data, 8, timesteps, 0, accelerator, augmentation=augmentation, labels=labels)
    [(_, [batch])] = list(batches.of_steps(0, 1))
    assert batch.labels is not None
    assert batch.augment_labels is not None
    assert said.count("copy") == 5
    assert "copy that is waited for" not in said
    assert said[:2] == ["side waits for user", "on side"]
    handed = said.index("user waits for side")
    assert said[handed - 1] == "off side"
    assert said[handed + 1 :] == ["kept for user"] * 6  # images, timesteps, noise, labels, weights, labels


def test_losses_are_read_beside_the_device(said: list[str]) -> None:
    accelerator: Any = SimpleNamespace(
        num_processes=1, process_index=0, gradient_accumulation_steps=1, device=CUDA, gather=lambda x: x
    )
    data = ImageData("noise", torch.zeros(8, 1, 4, 4, dtype=torch.uint8), None)
    timesteps = ImportanceTimesteps(2)
    batches = Batches(data, 8, timesteps, 0, accelerator)
    t, losses = torch.arange(2).repeat(HISTORY), torch.tensor([1.0, 3.0]).repeat(HISTORY)
    batches.learn([t[:8], t[8:]], [losses[:8], losses[8:]])
    assert said == ["on side", "off side"]
    assert timesteps.probabilities()[1] == pytest.approx(0.75, abs=0.001)


def test_what_is_fetched_from_cuda_is_waited_for_when_it_is_asked_for(said: list[str]) -> None:
    host = torch.tensor(3.0)

    def to(device: str, non_blocking: bool) -> Tensor:
        said.append(f"to {device}, {non_blocking}")
        return host

    event = SimpleNamespace(synchronize=lambda: said.append("waited"))
    torch.cuda.current_stream().record_event = lambda: said.append("event") or event  # type: ignore[method-assign]
    fetched = Fetched(SimpleNamespace(device=CUDA, to=to))  # type: ignore[arg-type]
    assert said == ["to cpu, True", "event"]
    assert fetched.get() == 3
    assert said[2:] == ["waited"]
    assert Fetched(host).get() is host
