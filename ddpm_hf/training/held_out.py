"""The loss on images that are not trained on: where it rises while the training loss falls, a model learns by heart."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.losses import Objective, training_loss
from ddpm_hf.images import from_uint8
from ddpm_hf.launch import compute_in_shares
from ddpm_hf.randomness import random_stream
from ddpm_hf.training.log import QUARTERS


class HeldOutLoss:
    """The mean loss in each quarter of T, at the same timesteps and noise each time it is asked for.

    Each image is seen once in each quarter, at a time and with a noise that depend on the seed and its number alone. So
    two values differ by what the network has learnt in between, and by no chance.

    Args:
        denoiser: Denoiser of the network in training, without clipping.
        objective: What is minimised.
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)`` for a network with classes, else None.
        seed: That of the run.
        accelerator: Its processes share the work, and get the same numbers.
        batch_size: Images computed at once by each process.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        images: Tensor,
        labels: Tensor | None,
        seed: int,
        accelerator: Accelerator,
        batch_size: int,
    ) -> None:
        self._denoiser, self._objective = denoiser, objective
        self._images, self._labels = images, labels
        self._seed, self._accelerator, self._batch_size = seed, accelerator, batch_size

    @torch.no_grad()
    def __call__(self, model: Any) -> list[float]:
        """The mean losses of the present weights, from the cleanest quarter to the noisiest.

        Args:
            model: The network as accelerate has wrapped it, in evaluation mode meanwhile. All processes must call.
        """
        was_training = model.training
        model.eval()
        losses = compute_in_shares(
            self._of_images, len(self._images), self._batch_size, self._accelerator, in_step=True
        )
        model.train(was_training)
        return [float(loss) for loss in losses.double().mean(dim=0)]

    def _of_images(self, numbers: range) -> Tensor:
        """The losses of some images, ``(b, QUARTERS)``."""
        device, length = self._accelerator.device, self._denoiser.diffusion.num_train_timesteps
        x_0 = from_uint8(self._images[numbers.start : numbers.stop].to(device))
        labels = None if self._labels is None else self._labels[numbers.start : numbers.stop].to(device)
        streams = [random_stream("held-out loss", self._seed, number) for number in numbers]
        columns = []
        for quarter in range(QUARTERS):
            shares = np.array([(quarter + stream.random()) / QUARTERS for stream in streams])
            t = torch.from_numpy((shares * length).astype(np.int64)).to(device)
            drawn = np.stack([stream.standard_normal(x_0.shape[1:], dtype=np.float32) for stream in streams])
            noise = torch.from_numpy(drawn).to(device)
            output = self._denoiser.output(self._denoiser.diffusion.q_sample(x_0, t, noise), t, labels)
            columns.append(training_loss(self._denoiser, output, x_0, noise, t, self._objective))
        return torch.stack(columns, dim=1)
