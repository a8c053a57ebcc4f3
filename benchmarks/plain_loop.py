"""The plain loop to compare with: diffusers' network, noise, optimizer, schedule and average, put together as in its
unconditional training example.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor


@dataclass(frozen=True)
class PlainSettings:
    """What is tuned; the defaults are the example's.

    Args:
        learning_rate: after the warm-up.
        warmup_steps: of the learning rate.
        beta_schedule: of diffusers' DDPMScheduler.
        prediction_type: epsilon or v_prediction.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 500
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"


EXAMPLE = PlainSettings()


class PlainLoop:
    """Trains in place, with torch's own random numbers; the images are in memory already, which the example's are not.

    Args:
        unet: diffusers' own.
        images: (N, C, H, W) in [-1, 1].
        steps: of the cosine schedule.
        batch_size: images of a step.
        settings: what is tuned.
    """

    def __init__(
        self,
        unet: diffusers.UNet2DModel,
        images: Tensor,
        steps: int,
        batch_size: int,
        settings: PlainSettings = EXAMPLE,
    ) -> None:
        self.unet = unet.train()
        self.noise_scheduler = diffusers.DDPMScheduler(
            num_train_timesteps=1000, beta_schedule=settings.beta_schedule, prediction_type=settings.prediction_type
        )
        self.optimizer = torch.optim.AdamW(
            unet.parameters(), lr=settings.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.lr_scheduler = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=steps
        )
        self.ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(images), batch_size, shuffle=True, drop_last=True
        )
        self.batches: Iterator[list[Tensor]] = itertools.chain.from_iterable(itertools.repeat(loader))
        self.seconds = 0.0

    def step(self) -> None:
        """One step of the optimizer."""
        start = time.perf_counter()
        (clean,) = next(self.batches)
        noise = torch.randn_like(clean)
        t = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(clean),))
        noisy = self.noise_scheduler.add_noise(clean, noise, t)
        is_v = self.noise_scheduler.config.prediction_type == "v_prediction"
        target = self.noise_scheduler.get_velocity(clean, noise, t) if is_v else noise
        loss = F.mse_loss(self.unet(noisy, t).sample, target)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        self.seconds += time.perf_counter() - start
