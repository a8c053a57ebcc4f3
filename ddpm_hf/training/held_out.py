"""The loss on images that are not trained on: where it rises while the training loss falls, a model learns by heart."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.data.sources import ImageData, ImageSource, load_cached_images
from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.losses import Objective, training_loss
from ddpm_hf.launch import compute_in_shares
from ddpm_hf.randomness import random_stream
from ddpm_hf.settings import renamed
from ddpm_hf.training.log import QUARTERS
from ddpm_hf.training.settings import Config


def held_out_images(config: Config, data: ImageSource) -> ImageData:
    """The images of the held-out split, whose numbers mean what those of the training images do.

    Args:
        config: The run's settings.
        data: Its training images.

    Raises:
        ValueError: they cannot be loaded, or are of another type or shape.
    """
    split, low, high = str(config.evaluation.held_out_split), min(data.format.low), max(data.format.high)
    # Percentiles are those of the training images.
    value_range = (low, high) if config.data.value_range == "percentile" else config.data.value_range
    with renamed({"data.split": "evaluation.held_out_split"}):
        found = load_cached_images(replace(config.data, split=split, value_range=value_range))
    if found.shape != data.shape or found.format.dtype != data.format.dtype:
        raise ValueError(
            f"evaluation.held_out_split {split!r} has {found.format.dtype} images of {found.shape} and the training "
            f"images are {data.format.dtype} of {data.shape} (channels, height, width); make it null, or bring both to "
            "one form by data.channels, data.dtype and data.resolution"
        )
    return replace(found, format=data.format)


class HeldOutLoss:
    """The mean loss in each quarter of T, at the same timesteps and noise each time it is asked for.

    Each image is seen once in each quarter, at a time and with a noise that depend on the seed and its number alone. So
    two values differ by what the network has learnt in between, and by no chance.

    Args:
        denoiser: Denoiser of the network in training, without clipping.
        objective: What is minimised.
        data: The images; with labels for a network with classes, and without for any other.
        seed: That of the run.
        accelerator: Its processes share the work, and get the same numbers.
        batch_size: Images computed at once by each process.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        data: ImageData,
        seed: int,
        accelerator: Accelerator,
        batch_size: int,
    ) -> None:
        self._denoiser, self._objective = denoiser, objective
        self._data, self._seed = data, seed
        self._accelerator, self._batch_size = accelerator, batch_size

    @torch.no_grad()
    def __call__(self, model: Any) -> list[float]:
        """The mean losses of the present weights, from the cleanest quarter to the noisiest.

        Args:
            model: The network as accelerate has wrapped it, in evaluation mode meanwhile. All processes must call.
        """
        was_training = model.training
        model.eval()
        losses = compute_in_shares(self._of_images, len(self._data), self._batch_size, self._accelerator, in_step=True)
        model.train(was_training)
        return [float(loss) for loss in losses.double().mean(dim=0)]

    def _of_images(self, numbers: range) -> Tensor:
        """The losses of some images, ``(b, QUARTERS)``."""
        device, length = self._accelerator.device, self._denoiser.diffusion.num_train_timesteps
        data, rows = self._data, slice(numbers.start, numbers.stop)
        x_0 = data.format.to_model(data.images[rows].to(device))
        labels = None if data.labels is None else data.labels[rows].to(device)
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
