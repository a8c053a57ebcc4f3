"""The recipes: each parses, builds its network, and goes with images of its size; the papers' settings are theirs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_hf import DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.data.augmentation import Augmentation
from ddpm_hf.data.batches import Batches
from ddpm_hf.data.sources import ImageData
from ddpm_hf.diffusion.timestep_sampling import timestep_sampler
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.training.optimization import check_fit
from ddpm_hf.training.settings import Config

FOLDER = Path(__file__).parents[2] / "configs" / "train"
RECIPES = sorted(FOLDER.glob("*.yaml"))
# FACTS of ddpm-torch: batch, learning rate, steps, dropout, variance, parameters.
PAPERS = {
    "cifar10": (128, 2e-4, 2040 * (50_000 // 128), 0.1, "fixed_large", 35_746_307),
    "celeba64": (128, 2e-5, 600 * (202_599 // 128), 0.0, "fixed_small", 35_746_307),
    "celebahq256": (64, 2e-5, 1200 * (30_000 // 64), 0.0, "fixed_small", 113_673_219),
}


def parse(path: Path) -> Config:
    return parse_config(["--config", str(path)], path)


def one_of(processes: int) -> Any:
    return SimpleNamespace(
        num_processes=processes, process_index=0, gradient_accumulation_steps=1, device=torch.device("cpu")
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_network_and_batches(path: Path) -> None:
    side = parse(path).data.resolution or 64
    config = parse(path).following((3, side, side))
    shape = (config.model["in_channels"], config.model["sample_size"], config.model["sample_size"])
    assert config.data.resolution in (None, shape[1])
    labels = None if config.model["num_class_embeds"] is None else torch.arange(8)
    data = ImageData("made up", torch.randint(256, (8, *shape), dtype=torch.uint8), labels)
    with torch.device("meta"):
        unet = UNet2DModel(**config.model)
    scheduler = DDPMScheduler(**config.diffusion)
    check_fit(data, unet, scheduler, config.training)
    for processes in (1, 2, 4, 8):
        timesteps = timestep_sampler(config.training.timestep_sampling, len(scheduler), config.training.batch_size)
        batches = Batches(
            data, config.training.batch_size, timesteps, 0, one_of(processes), augmentation=Augmentation.of(config.data)
        )
        batch = batches.micro_batch(0, 0)
        assert batch.x_0.shape == batch.noise.shape == (config.training.batch_size // processes, *shape)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_run_it_what_comes_of_it_and_what_it_costs(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    named = [line[2:].partition(":")[0] for line in head[1:] if not line.startswith("#  ")]  # others continue a line
    assert named[:3] == ["Command", "Expected", "Cost"]
    is_default = path.stem == "digits"
    assert is_default or f"--config configs/train/{path.name}" in head[1]
    assert is_default or parse(path).output_dir == Path("runs") / path.stem


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_have_their_settings(name: str) -> None:
    config = parse(FOLDER / f"{name}.yaml")
    batch, rate, steps, dropout, variance, parameters = PAPERS[name]
    training = config.training
    assert (training.batch_size, training.learning_rate, training.steps) == (batch, rate, steps)
    assert (config.model["dropout"], config.diffusion["variance_type"]) == (dropout, variance)
    assert (training.optimizer, training.betas, training.max_grad_norm) == ("adam", (0.9, 0.999), 1.0)
    assert (training.warmup_steps, training.lr_schedule, training.ema_decays) == (5000, "constant", (0.9999,))
    assert config.diffusion["beta_schedule"] == "linear"
    assert (config.diffusion["beta_start"], config.diffusion["beta_end"]) == (1e-4, 0.02)
    assert config.diffusion["num_train_timesteps"] == 1000
    assert config.data.random_flip
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet2DModel(**config.model).parameters()) == parameters
