"""Diffusion on points of the plane: the same process, losses and schedulers as for images, in about a minute.

    python -m ddpm_hf.toy --data swissroll

Everything that makes a diffusion model is on this page, from top to bottom: data, network, training, sampling, and a
number that says how good the result is. It leaves in runs/toy/NAME/

    strip.png       noise becoming data (above) beside data becoming noise (below), at the same times
    process.gif     the same, moving
"""

import math
from dataclasses import dataclass
from pkgutil import resolve_name
from statistics import mean
from typing import Any, Final

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from ddpm_hf.diffusion.denoiser import Denoiser
from ddpm_hf.diffusion.losses import training_loss
from ddpm_hf.diffusion.process import CLEAN
from ddpm_hf.progress import Progress
from ddpm_hf.sampling.denoising import DEFAULT, step_options_of
from ddpm_hf.sampling.samplers import check_start, make_scheduler
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.toy.pictures import draw_animation, draw_strip
from ddpm_hf.toy.settings import DATA, ToyConfig

# Data: (number, generator) -> float32 (number, 2), of about unit variance, so that the noise has the data's size.


def gaussian8(number: int, generator: torch.Generator) -> Tensor:
    angle = torch.randint(8, (number,), generator=generator) * (math.pi / 4)
    spots = 2**0.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return spots + 0.05 * torch.randn(number, 2, generator=generator)


def gaussian25(number: int, generator: torch.Generator) -> Tensor:
    spots = torch.randint(-2, 3, (number, 2), generator=generator) / 2**0.5
    return spots + 0.05 * torch.randn(number, 2, generator=generator)


def swissroll(number: int, generator: torch.Generator) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(number, generator=generator))
    roll = angle[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return (roll + 0.25 * torch.randn(number, 2, generator=generator)) / 7


def two_moons(number: int, generator: torch.Generator) -> Tensor:
    angle = math.pi * torch.rand(number, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    sign = 2 * torch.randint(2, (number, 1), generator=generator) - 1
    return 1.4 * (sign * upper + 0.05 * torch.randn(number, 2, generator=generator))


class PointNetwork(nn.Module):
    """Five layers that see a point x_t, (B, 2), and its time t, (B,), and say (B, 2): the UNet's place.

    Both come as sines and cosines too, as the time does in the UNet: without them a network of this size cannot tell
    neighbouring spots apart. The time is added before every layer.
    """

    frequencies: Tensor
    time_frequencies: Tensor

    def __init__(self, num_train_timesteps: int, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.tensor([0.5, 1.0, 2.0]))
        self.register_buffer("time_frequencies", 2 * math.pi * torch.logspace(-2, 1, 16) / num_train_timesteps)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(2 + 12, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, 2)

    def forward(self, x_t: Tensor, t: Tensor, class_labels: None = None) -> Tensor:
        time = self.time(waves(t[:, None], self.time_frequencies))
        h = self.first(torch.cat([x_t, waves(x_t, self.frequencies)], dim=1))
        for layer in self.hidden:
            h = h + layer(F.silu(h + time))
        output: Tensor = self.last(F.silu(h))
        return output


def waves(x: Tensor, frequencies: Tensor) -> Tensor:
    """(B, C) to (B, 2 C frequencies)."""
    angles = (x[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def train(config: ToyConfig, denoiser: Denoiser) -> Denoiser:
    """Algorithm 1 of Ho et al. 2020: the denoiser with a trained network."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = PointNetwork(config.num_train_timesteps)
    denoiser = denoiser.of(network)
    points_of = resolve_name(DATA[config.data])
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    with Progress("training", config.steps, "step", not config.quiet) as told:
        for _ in range(config.steps):
            x_0 = points_of(config.batch_size, generator)
            t = torch.randint(config.num_train_timesteps, (config.batch_size,), generator=generator)
            noise = torch.randn(x_0.shape, generator=generator)
            x_t = denoiser.diffusion.q_sample(x_0, t, noise)
            loss = training_loss(denoiser, denoiser.output(x_t, t), x_0, noise, t).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            told.advance()
    return denoiser


@torch.no_grad()
def sample(config: ToyConfig, denoiser: Denoiser, scheduler: Any) -> tuple[list[int], list[Tensor]]:
    """Algorithm 2 of Ho et al. 2020, or another sampler: the times of the way back, down to -1, and the points at each.

    Points are as the network sees them: some samplers of diffusers go their way in other units.
    """
    generator = torch.Generator().manual_seed(config.seed + 1)
    scheduler.set_timesteps(config.num_inference_steps)
    check_start(scheduler)
    options = step_options_of(scheduler, DEFAULT, generator)
    x_t = torch.randn(config.num_points, 2, generator=generator) * scheduler.init_noise_sigma
    points = []
    for t in scheduler.timesteps:
        points.append(scheduler.scale_model_input(x_t, t))
        model_output = denoiser.output(points[-1], t.expand(config.num_points))
        x_t = scheduler.step(model_output, t, x_t, **options).prev_sample
    return [*(round(float(t)) for t in scheduler.timesteps), CLEAN], [*points, x_t]


COMPARED: Final = 10_000
"""The most points of a set that are compared with all of another, as the memory grows with their square."""


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over all pairs of points (Szekely & Rizzo 2013): 0 for equal sets only."""
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def floor_of_energy_distance(x: Tensor) -> float:
    """What two independent sets of the same source and of x's size are apart on average: 2 E|x - x'| / N.

    Of the N^2 pairs within a set N are of a point with itself and count nothing, so each E|x - x'| is too small by 1/N.
    """
    return float(2 * torch.cdist(x, x).mean() / (len(x) - 1))


MOVED: Final = 2000
"""The most points that are assigned to each other: the time grows with the cube of their number, to a second here."""


def wasserstein_distance(x: Tensor, y: Tensor) -> float:
    """How far, by the root of the mean square, the points x must move to become the points y, as many of them.

    Each goes to one of the other set, such that this is least: the exact 2-Wasserstein distance of the two sets.
    """
    squares = cdist(x.double(), y.double(), "sqeuclidean")
    return math.sqrt(squares[linear_sum_assignment(squares)].mean())


@dataclass(frozen=True)
class Distances:
    """How far the model's points are from held-out data, and two sets of data from each other, both on average.

    Args:
        energy: The energy distance, of `COMPARED` points at most.
        energy_floor: That of two sets of data.
        moved: The 2-Wasserstein distance, of `MOVED` points at most.
        moved_floor: That of two sets of data.
    """

    energy: float
    energy_floor: float
    moved: float
    moved_floor: float


def run(config: ToyConfig) -> Distances:
    """Train, sample and draw."""
    torch.set_num_threads(config.threads)
    model_scheduler = DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        clip_sample=False,  # images lie in [-1, 1]; these points do not
    )
    denoiser = train(config, model_scheduler.denoiser)
    times, points = sample(config, denoiser, make_scheduler(model_scheduler.config, config.scheduler))

    generator = torch.Generator().manual_seed(config.seed + 2)
    points_of = resolve_name(DATA[config.data])
    held_out = [points_of(config.num_points, generator) for _ in range(4)]
    neighbours = zip(held_out, held_out[1:] + held_out[:1])
    distances = Distances(
        energy=mean(energy_distance(points[-1][:COMPARED], data[:COMPARED]) for data in held_out),
        energy_floor=mean(floor_of_energy_distance(data[:COMPARED]) for data in held_out),
        moved=mean(wasserstein_distance(points[-1][:MOVED], data[:MOVED]) for data in held_out),
        moved_floor=mean(wasserstein_distance(data[:MOVED], other[:MOVED]) for data, other in neighbours),
    )

    noise = torch.randn(config.num_points, 2, generator=generator)
    forward = [denoiser.diffusion.q_sample(held_out[0], t, noise) for t in times]
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    draw_strip(folder / "strip.png", times, points, forward)
    draw_animation(folder / "process.gif", times, points, forward)
    return distances
