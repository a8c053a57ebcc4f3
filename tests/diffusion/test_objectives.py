"""Every objective trains on the digits, whichever way timesteps are drawn; and a run of each kind is reproducible."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.data.batches import Batches, ClassLabels
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images
from ddpm_hf.diffusion.choices import NOISE_SCHEDULES, PREDICTION_TYPES
from ddpm_hf.diffusion.losses import training_loss
from ddpm_hf.diffusion.timestep_sampling import timestep_sampler
from ddpm_hf.training.optimization import check_fit, objective_of
from ddpm_hf.training.settings import TrainingConfig
from tests.runs import ended, finished, log_of, measured, tensors_of

LOSS_OF_VARIANCE = {
    "fixed_small": ("simple", "kl"),
    "fixed_large": ("simple", "kl"),
    "learned": ("kl", "hybrid"),
    "learned_range": ("kl", "hybrid"),
}
VALID = [
    (prediction_type, variance_type, loss, weighting)
    for prediction_type, variance_type in itertools.product(PREDICTION_TYPES, LOSS_OF_VARIANCE)
    for loss in LOSS_OF_VARIANCE[variance_type]
    for weighting in (("none", "min_snr", "p2") if loss != "kl" and prediction_type != "posterior_mean" else ("none",))
]
ONE_PROCESS: Any = SimpleNamespace(
    num_processes=1, process_index=0, gradient_accumulation_steps=1, device=torch.device("cpu"), gather=lambda x: x
)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_cached_images(DataConfig())


def trained(
    digits: ImageData, diffusion: dict[str, Any], training: dict[str, Any], model: dict[str, Any]
) -> tuple[list[float], UNet2DModel]:
    """The losses of some steps of a small network, and the network."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    sizes = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DModel(**{**blocks, **sizes, "in_channels": 1, "out_channels": 1, **model})
    scheduler, config = DDPMScheduler(**diffusion), TrainingConfig(steps=3, batch_size=64, **training)
    check_fit(digits, unet, scheduler, config)
    timesteps = timestep_sampler(config.timestep_sampling, len(scheduler), config.batch_size)
    labels = None if unet.config.num_class_embeds is None else ClassLabels()
    batches = Batches(digits, config.batch_size, timesteps, 0, ONE_PROCESS, labels=labels)
    optimizer, values = torch.optim.Adam(unet.parameters(), 1e-3), []
    for _, (batch,) in batches.of_steps(0, config.steps):
        output = unet(scheduler.diffusion.q_sample(batch.x_0, batch.t, batch.noise), batch.t, batch.labels).sample
        loss = training_loss(scheduler.denoiser, output, batch.x_0, batch.noise, batch.t, objective_of(config))
        (batch.weights * loss).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
        assert all(output_grad.abs().max() > 0 for output_grad in unet.conv_out.weight.grad)
        optimizer.step()
        optimizer.zero_grad()
        batches.learn([batch.t], [loss])
        values.append(loss.mean().item())
    return values, unet


@pytest.mark.parametrize("timestep_sampling", ["uniform", "stratified", "importance"])
@pytest.mark.parametrize(("prediction_type", "variance_type", "loss", "weighting"), VALID)
def test_every_valid_objective_trains(
    digits: ImageData, prediction_type: str, variance_type: str, loss: str, weighting: str, timestep_sampling: str
) -> None:
    """With gradients for every channel of the output; with few timesteps, that importance has its history at once."""
    channels = 2 if variance_type.startswith("learned") else 1
    values, _ = trained(
        digits,
        {
            "num_train_timesteps": 4,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": prediction_type,
            "variance_type": variance_type,
        },
        {"loss": loss, "loss_weighting": weighting, "timestep_sampling": timestep_sampling},
        {"out_channels": channels},
    )
    assert torch.tensor(values).isfinite().all()


@pytest.mark.parametrize("loss", ["simple", "kl", "hybrid"])
@pytest.mark.parametrize("beta_schedule", [*NOISE_SCHEDULES, "zero_snr"])
def test_every_noise_schedule_trains(digits: ImageData, beta_schedule: str, loss: str) -> None:
    name = "linear" if beta_schedule == "zero_snr" else beta_schedule
    is_hybrid = loss == "hybrid"
    values, _ = trained(
        digits,
        {
            "beta_schedule": name,
            "rescale_betas_zero_snr": beta_schedule == "zero_snr",
            "prediction_type": "v_prediction",
            "variance_type": "learned_range" if is_hybrid else "fixed_small",
        },
        {"loss": loss},
        {"out_channels": 2 if is_hybrid else 1},
    )
    assert torch.tensor(values).isfinite().all()


WORK = [
    *("--training.steps", 14, "--training.checkpoint_every", 5, "--training.log_every", 1),
    *("--diffusion.num_train_timesteps", 4, "--diffusion.variance_type", "learned_range"),
    *("--model.out_channels", 2, "--training.loss", "hybrid", "--training.timestep_sampling", "importance"),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("unbroken") / "run", *WORK)


def test_what_importance_has_learnt_is_resumed_to_the_bit(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished(run, *WORK, "--resume", unbroken / "checkpoints" / "step-5")
    assert measured(run) == measured(unbroken)[5:]
    mine, theirs = tensors_of(run, 14), tensors_of(unbroken, 14)
    assert theirs["timesteps.safetensors/counts"].sum() == 14 * 16
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_two_processes_and_two_passes_learn_what_one_does(unbroken: Path, tmp_path: Path) -> None:
    cut = finished(tmp_path / "2x2", *WORK, "--training.gradient_accumulation_steps", 2, processes=2)
    mine, theirs = (load_file(run / "checkpoints/step-14/training/timesteps.safetensors") for run in (cut, unbroken))
    assert torch.equal(mine["counts"], theirs["counts"])
    torch.testing.assert_close(mine["losses"], theirs["losses"], rtol=1e-4, atol=0)
    assert [line["loss"] for line in log_of(cut)] == pytest.approx(
        [line["loss"] for line in log_of(unbroken)], rel=1e-4
    )


def test_plain_diffusers_draws_from_a_network_that_learned_its_variance(unbroken: Path) -> None:
    theirs = diffusers.DiffusionPipeline.from_pretrained(unbroken)
    assert type(theirs) is diffusers.DDPMPipeline
    assert theirs.scheduler.config.variance_type == "learned_range"
    options = {"num_inference_steps": 4, "output_type": "np"}
    images = theirs(generator=torch.Generator().manual_seed(0), **options).images
    ours = DDPMCustomPipeline.from_pretrained(unbroken)(generator=torch.Generator().manual_seed(0), **options).images
    assert abs(images - ours).max() < 1e-4


def test_plain_diffusers_loads_a_posterior_mean_and_refuses_to_draw_by_name(tmp_path: Path) -> None:
    settings = ["--diffusion.prediction_type", "posterior_mean", "--training.loss_weighting", "none"]
    settings += ["--evaluation.sampler", "ddim"]
    run = finished(tmp_path / "run", "--training.steps", 2, *settings)
    assert json.loads((run / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "posterior_mean"
    with pytest.raises(ValueError, match="posterior_mean"):
        diffusers.DiffusionPipeline.from_pretrained(run)(num_inference_steps=2)


def test_an_objective_that_teaches_nothing_is_refused_at_the_start(tmp_path: Path) -> None:
    status, said = ended(tmp_path / "run", "--training.loss", "hybrid")
    assert status == 2
    assert "training.loss='hybrid' adds nothing to 'simple' with diffusion.variance_type='fixed_small'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


CONDITIONAL = [
    *("--config", Path(__file__).parents[2] / "configs" / "train" / "digits_conditional.yaml"),
    *("--training.steps", 6, "--training.lr_schedule", "constant"),
]


def test_a_conditional_run_scores_the_classes_that_it_asked_for(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", *CONDITIONAL)
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    assert 0 <= scores["accuracy"]["samples"] <= 1
    assert scores["accuracy"]["held_out"] > 0.9
    cut = finished(tmp_path / "cut", *CONDITIONAL, processes=2)
    assert [line["loss"] for line in log_of(cut)] == pytest.approx([line["loss"] for line in log_of(run)], rel=1e-5)
    without = finished(tmp_path / "without", *CONDITIONAL, "--training.label_dropout", 0.9)
    assert measured(without) != measured(run)


def test_guidance_needs_label_dropout(tmp_path: Path) -> None:
    status, said = ended(tmp_path / "run", *CONDITIONAL, "--training.label_dropout", 0)
    assert status == 2
    assert "evaluation.guidance_scale is 1.5 and must be 1, or training.label_dropout above 0" in said
