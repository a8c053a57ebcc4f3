"""The batch of a training step: which images, and everything random about it, as a function of (step, seed)."""

import time
from collections.abc import Callable, Iterator, Sequence
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
from ddpm_hf.transfers import SideStream, uploaded


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
        self._side = SideStream(accelerator.device)

    def micro_batch(self, step: int, index: int) -> Batch:
        """This process's part of micro-batch ``index`` of ``step``."""
        return self._begun(step, index)()

    def _begun(self, step: int, index: int) -> Callable[[], Batch]:
        """A micro-batch but for what may follow from the losses of the steps before; the call adds it."""
        start = (self._process * self.num_micro_batches + index) * self.micro_batch_size
        stop = start + self.micro_batch_size
        images, labels = self.data.batch(step, self.batch_size, start, stop, self.seed)
        drawn, flip, noise = draw_randomness(self.seed, step, start, stop, self.data.shape, self.timesteps)

        x_0 = self.data.format.to_model(uploaded(images, self._device))
        x_0, augment_labels = self.augmentation(x_0, flip, self.seed, step, start)
        if labels is not None and self.labels is not None:
            dropped = dropped_labels(self.seed, step, start, stop, self.labels.dropout)
            labels = uploaded(labels.masked_fill(dropped, self.labels.no_class), self._device)
        else:
            labels = None
        noise = uploaded(noise, self._device)

        def with_timesteps() -> Batch:
            t = self.timesteps.to_timesteps(drawn)
            weights = uploaded(self.timesteps.weights(t), self._device)
            return Batch(x_0, uploaded(t, self._device), noise, labels, weights, augment_labels)

        return with_timesteps

    def of_steps(self, first: int, stop: int) -> Iterator[tuple[int, list[Batch]]]:
        """Steps ``first`` to ``stop - 1``, each with its micro-batches.

        Beside an accelerator the next batch is made while one is used, but for timesteps that follow from the losses of
        this one. On the CPU that would only take cores from the network.
        """
        self._side.catch_up()  # with constants that others have made
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming: Future[Callable[[], list[Batch]]] | None = None
            for step in range(first, stop):
                start = time.perf_counter()
                finish = coming.result() if coming else self._made(step)
                with self._side.used():
                    batches = finish()
                self._side.hand_over(tensor for batch in batches for tensor in vars(batch).values())
                self.seconds_waited += time.perf_counter() - start
                if self._device.type != "cpu" and step + 1 < stop:
                    coming = pool.submit(self._made, step + 1)
                yield step, batches

    def learn(self, t: Sequence[Tensor], losses: Sequence[Tensor]) -> None:
        """Tell the timestep sampler the losses of a step. All processes must call it.

        Args:
            t: Timesteps of each of this process's micro-batches of the step.
            losses: Losses of the same images. The host must have seen that they are computed, as it has where it knows
                the norm of their gradient: they are read beside whatever the device does by now.
        """
        if self.timesteps.learns:
            with self._side.used():
                of_all = self._accelerator.gather((torch.cat(list(t)), torch.cat(list(losses)).detach()))
                self.timesteps.update(*of_all)

    def _made(self, step: int) -> Callable[[], list[Batch]]:
        """As much of the micro-batches of a step as does not follow from losses; the call makes the rest."""
        with self._side.used():
            begun = [self._begun(step, index) for index in range(self.num_micro_batches)]
            if self.timesteps.learns:
                return lambda: [finish() for finish in begun]
            batches = [finish() for finish in begun]
            return lambda: batches


def draw_randomness(
    seed: int, step: int, start: int, stop: int, shape: tuple[int, ...], timesteps: TimestepSampler
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps, flips and noise of samples ``start`` to ``stop - 1`` of the global batch of ``step``.

    Returns:
        What ``timesteps`` draws, ``(n,)``; bool ``(n,)``; standard normal float32 ``(n, *shape)``; n = stop - start.
        Those of one sample depend on (seed, step, sample) and not on which others are drawn with it.
    """
    drawn, flip, noise = [], [], []
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        stream = random_stream("training step", seed, step, block)
        drawn.append(timesteps.draw(stream, np.arange(block * BLOCK, (block + 1) * BLOCK)))
        flip.append(stream.random(BLOCK) < 0.5)
        noise.append(stream.standard_normal((BLOCK, *shape), dtype=np.float32))
    mine = slice(start % BLOCK, start % BLOCK + stop - start)
    joined = [torch.from_numpy(np.concatenate(parts)[mine]) for parts in (drawn, flip, noise)]
    return joined[0], joined[1], joined[2]


def dropped_labels(seed: int, step: int, start: int, stop: int, probability: float) -> Tensor:
    """Which of samples ``start`` to ``stop - 1`` of the global batch of ``step`` lose their label, bool ``(n,)``."""
    if probability == 0:
        return torch.zeros(stop - start, dtype=torch.bool)
    draws = drawn_in_blocks(start, stop, lambda block: random_stream("label dropout", seed, step, block).random(BLOCK))
    return torch.from_numpy(draws < probability)
