"""The settings of the toy; nothing here loads torch."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

from ddpm_hf.diffusion.checks import MOST_TIMESTEPS
from ddpm_hf.diffusion.choices import NOISE_SCHEDULES, PREDICTION_TYPES
from ddpm_hf.sampling.samplers import SamplerName, check_sampler
from ddpm_hf.settings import check, check_seed

DATA: Final = {
    "gaussian8": "ddpm_hf.toy.points:gaussian8",
    "gaussian25": "ddpm_hf.toy.points:gaussian25",
    "swissroll": "ddpm_hf.toy.points:swissroll",
    "two_moons": "ddpm_hf.toy.points:two_moons",
}
"""Where the function of each set of points is, for `pkgutil.resolve_name`."""

MOST_POINTS: Final = 10_000_000
MOST_KEPT: Final = 200_000_000


@dataclass(frozen=True)
class ToyConfig:
    """Settings of the toy.

    Args:
        data: Distribution of the points: gaussian8 (a ring of 8 spots), gaussian25 (a grid of 25), swissroll or
            two_moons.
        output: Folder for the pictures; null means runs/toy/ and the data's name.
        seed: Everything random follows from it.
        steps: Training steps.
        batch_size: Points per step.
        learning_rate: Learning rate of the first step; it falls to zero along a half cosine.
        prediction_type: What the network learns: epsilon, sample, v_prediction or posterior_mean.
        beta_schedule: The noise schedule, such as linear or squaredcos_cap_v2.
        num_train_timesteps: T, the number of timesteps from data to noise.
        scheduler: The sampler, as in ddpm-hf-sample.
        num_inference_steps: Steps of the sampler.
        num_points: Number of points to draw; they (or 10,000 of them, if there are more, and 2,000 for the Wasserstein
            distance) are compared with as many points of the data.
        threads: CPU threads.
        quiet: Do not tell how far it is: no bar in a terminal, and no lines where there is none.
    """

    data: str = "gaussian8"
    output: Path | None = None
    seed: int = 0
    steps: int = 6000
    batch_size: int = 512
    learning_rate: float = 3e-3
    prediction_type: str = "epsilon"
    beta_schedule: str = "linear"
    num_train_timesteps: int = 1000
    scheduler: SamplerName = "ddim"
    num_inference_steps: int = 100
    num_points: int = 5000
    threads: int = 1
    quiet: bool = False

    @property
    def folder(self) -> Path:
        """Where the pictures go."""
        return self.output or Path("runs", "toy", self.data)

    def __post_init__(self) -> None:
        check_seed("seed", self.seed, num_images=3)  # of training, of samples and of held-out data
        check(0 < self.learning_rate < inf, "learning_rate", self.learning_rate, "above 0, and finite")
        known = {
            "data": DATA,
            "prediction_type": PREDICTION_TYPES,
            "beta_schedule": NOISE_SCHEDULES,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r} and must be one of {', '.join(values)}")
        for name in ("steps", "batch_size", "num_train_timesteps", "num_inference_steps", "num_points", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be at least 1")
        for name in ("batch_size", "num_points"):
            check(getattr(self, name) <= MOST_POINTS, name, getattr(self, name), f"at most {MOST_POINTS:,}")
        most = MOST_TIMESTEPS
        check(self.num_train_timesteps <= most, "num_train_timesteps", self.num_train_timesteps, f"at most {most:,}")
        most = MOST_KEPT // self.num_inference_steps
        expected = (
            f"at most {most:,} with num_inference_steps {self.num_inference_steps}, as all steps are kept to be drawn"
        )
        check(self.num_points <= most, "num_points", self.num_points, expected)
        expected = f"at most num_train_timesteps, {self.num_train_timesteps}"
        steps = self.num_inference_steps
        check(steps <= self.num_train_timesteps, "num_inference_steps", steps, expected)
        check_sampler(self.scheduler, num_inference_steps=steps, prediction_type=self.prediction_type)
