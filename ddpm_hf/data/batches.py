"""The batch of a training step: which images, and everything random about it, as a function of (step, seed)."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.data.augmentation import NO_AUGMENTATION, Augmentation
from ddpm_hf.data.sources import ImageSource
from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.randomness import BLOCK, drawn_in_blocks, random_stream


@dataclass(frozen=True)
class Batch:
    """One micro-batch of ``b`` images on the device.

    Args:
        x_0: float32 ``(b, C, H, W)`` in [-1, 1].
        t: int64 ``(b,)``, within 0..T-1.
        noise: float32, standard normal, of the shape of ``x_0``.
        labels: int64 ``(b,)`` or None.
        weights: float32 ``(b,)``, what each image's loss counts, so that the mean is that of uniform timesteps.
        augment_labels: float32 ``(b, NUM_LABELS)``, what the network is told of the augmentation, or None.
    """

    x_0: Tensor
    t: Tensor
    noise: Tensor
    labels: Tensor | None
    weights: Tensor
    augment_labels: Tensor | None = None


@dataclass(frozen=True)
class ClassLabels:
    """How a network is given the classes of its images.

    Args:
        dropout: Probability with which an image's label is replaced by ``no_class``, for classifier-free guidance (Ho &
            Salimans 2022).
        no_class: The label that stands for "no class".
    """

    dropout: float = 0.0
    no_class: int = 0


class Batches:
    """The batch of every step, as a function of (step, seed): images, timesteps, noise and augmentation.

    The global batch of a step does not depend on the number of processes or micro-batches it is cut into; each process
    draws its own share alone.

    Args:
        data: The images.
        batch_size: Size of the global batch.
        timesteps: How timesteps are drawn.
        seed: All that is random here follows from it and the step (and from the losses where ``timesteps`` learns).
        accelerator: Says which of how many processes this is, of how many micro-batches a step has, and the device.
        augmentation: What is done to the images at random.
        labels: Give the labels of the images too; None for a network that takes none.

    Attributes:
        micro_batch_size: Images of one process in one pass.
        seconds_waited: Time that :meth:`of_steps` has kept its reader waiting.

    Raises:
        ValueError: the global batch cannot be cut evenly, or the images cannot be augmented so.
    """

    def __init__(
        self,
        data: ImageSource,
        batch_size: int,
        timesteps: TimestepSampler,
        seed: int,
        accelerator: Accelerator,
        *,
        augmentation: Augmentation = NO_AUGMENTATION,
        labels: ClassLabels | None = None,
    ) -> None:
        processes, self.num_micro_batches = accelerator.num_processes, accelerator.gradient_accumulation_steps
        pieces = processes * self.num_micro_batches
        if batch_size % pieces:
            below, above = batch_size // pieces * pieces, -(-batch_size // pieces) * pieces
            raise ValueError(
                f"training.batch_size is {batch_size}, which cannot be cut evenly into {processes} processes x "
                f"{self.num_micro_batches} accumulation steps; use {f'{below} or ' if below else ''}{above}"
            )
        augmentation.check(data.name, data.shape)
        self.data = data
        self.batch_size = batch_size
        self.timesteps = timesteps
        self.seed = seed
        self.augmentation = augmentation
        self.labels = labels
        self.seconds_waited = 0.0
        self.micro_batch_size = batch_size // pieces
        self._accelerator = accelerator
        self._process = accelerator.process_index
        self._device = accelerator.device

    def micro_batch(self, step: int, index: int) -> Batch:
        """This process's part of micro-batch ``index`` of ``step``."""
        start = (self._process * self.num_micro_batches + index) * self.micro_batch_size
        stop = start + self.micro_batch_size
        images, labels = self.data.batch(step, self.batch_size, start, stop, self.seed)
        t, flip, noise = draw_randomness(self.seed, step, start, stop, self.data.shape, self.timesteps)

        x_0 = self.data.format.to_model(images.to(self._device))
        x_0, augment_labels = self.augmentation(x_0, flip, self.seed, step, start)
        if labels is not None and self.labels is not None:
            dropped = dropped_labels(self.seed, step, start, stop, self.labels.dropout)
            labels = labels.masked_fill(dropped, self.labels.no_class).to(self._device)
        else:
            labels = None
        weights = self.timesteps.weights(t)
        return Batch(x_0, t.to(self._device), noise.to(self._device), labels, weights.to(self._device), augment_labels)

    def of_steps(self, first: int, stop: int) -> Iterator[tuple[int, list[Batch]]]:
        """Steps ``first`` to ``stop - 1``, each with its micro-batches.

        Beside an accelerator the next batch is made while one is used. On the CPU that would only take cores from the
        network, and where timesteps follow from losses the next batch waits for those of this one.
        """
        is_made_ahead = self._device.type != "cpu" and not self.timesteps.learns
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming: Future[list[Batch]] | None = None
            for step in range(first, stop):
                start = time.perf_counter()
                batches = coming.result() if coming else self._micro_batches(step)
                self.seconds_waited += time.perf_counter() - start
                if is_made_ahead and step + 1 < stop:
                    coming = pool.submit(self._micro_batches, step + 1)
                yield step, batches

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Tell the timestep sampler the losses of a step. All processes must call it.

        Args:
            t: Timesteps of all this process's micro-batches of the step, in their order.
            losses: Losses of the same images.
        """
        if self.timesteps.learns:
            self.timesteps.update(*self._accelerator.gather((t, losses.detach())))

    def _micro_batches(self, step: int) -> list[Batch]:
        return [self.micro_batch(step, index) for index in range(self.num_micro_batches)]


def draw_randomness(
    seed: int, step: int, start: int, stop: int, shape: tuple[int, ...], timesteps: TimestepSampler
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps, flips and noise of samples ``start`` to ``stop - 1`` of the global batch of ``step``.

    Returns:
        int64 ``(n,)`` within 0..T-1, bool ``(n,)``, and standard normal float32 ``(n, *shape)``, n = stop - start.
        Those of one sample depend on (seed, step, sample) and not on which others are drawn with it.
    """
    t, flip, noise = [], [], []
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        stream = random_stream("training step", seed, step, block)
        t.append(timesteps.draw(stream, np.arange(block * BLOCK, (block + 1) * BLOCK)))
        flip.append(stream.random(BLOCK) < 0.5)
        noise.append(stream.standard_normal((BLOCK, *shape), dtype=np.float32))
    mine = slice(start % BLOCK, start % BLOCK + stop - start)
    joined = [torch.from_numpy(np.concatenate(parts)[mine]) for parts in (t, flip, noise)]
    return joined[0], joined[1], joined[2]


def dropped_labels(seed: int, step: int, start: int, stop: int, probability: float) -> Tensor:
    """Which of samples ``start`` to ``stop - 1`` of the global batch of ``step`` lose their label, bool ``(n,)``."""
    if probability == 0:
        return torch.zeros(stop - start, dtype=torch.bool)
    draws = drawn_in_blocks(start, stop, lambda block: random_stream("label dropout", seed, step, block).random(BLOCK))
    return torch.from_numpy(draws < probability)
