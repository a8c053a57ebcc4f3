"""AdamsScheduler: of second order on a Gaussian, whose probability flow is known; its marginals; its life in files."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ddpm_hf import AdamsScheduler, DDPMCustomPipeline, DDPMScheduler, GaussianDiffusion, UNet2DModel
from ddpm_hf.sampling.samplers import make_scheduler
from ddpm_hf.schedulers.ddim import DDIMScheduler
from tests.networks import TWO_LEVELS

MEAN, STD = 0.3, 0.5


def moments(diffusion: GaussianDiffusion, t: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_t for data N(MEAN, STD^2)."""
    alpha_bar = diffusion.alpha_bar(t)
    return alpha_bar.sqrt() * MEAN, (alpha_bar * STD**2 + 1 - alpha_bar).sqrt()


def ideal(scheduler: Any, x_t: Tensor, t: int) -> Tensor:
    """What a perfect network of the scheduler's prediction type says of x_t."""
    diffusion = scheduler.diffusion
    mean, std = moments(diffusion, t)
    alpha_bar = diffusion.alpha_bar(t)
    x_0 = MEAN + alpha_bar.sqrt() * STD**2 / std**2 * (x_t - mean)
    noise = (1 - alpha_bar).sqrt() / std**2 * (x_t - mean)
    target: Tensor = diffusion.target(x_0, noise, t, scheduler.config.prediction_type)
    return target


def flow_error(scheduler: Any, steps: int) -> float:
    """How far points are, at time 99, from where the probability flow of a Gaussian takes them."""
    diffusion, last = scheduler.diffusion, 99
    angles = torch.linspace(diffusion.angle(999), diffusion.angle(last), steps + 1).tolist()
    scheduler.set_timesteps(timesteps=[round(diffusion.time_at(angle)) for angle in angles])
    x_t = start = torch.linspace(-3, 3, 101, dtype=torch.float64)[:, None]
    for t in scheduler.timesteps.tolist()[:-1]:
        x_t = scheduler.step(ideal(scheduler, x_t, t), t, x_t).prev_sample
    (first_mean, first_std), (last_mean, last_std) = moments(diffusion, 999), moments(diffusion, last)
    return float((x_t - (last_mean + last_std / first_std * (start - first_mean))).abs().max())


CASES = [
    {"prediction_type": "epsilon"},
    {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_it_is_of_second_order(options: dict[str, Any]) -> None:
    """The error falls by four where the steps double; DDIM's by two, and it is ten times as large."""
    config = DDPMScheduler(clip_sample=False, **options).config
    adams, ddim = (
        [flow_error(make_scheduler(config, name), steps) for steps in (30, 60, 120)] for name in ("adams", "ddim")
    )
    assert all(coarse / fine == pytest.approx(4, rel=0.35) for coarse, fine in pairwise(adams))
    assert all(coarse / fine == pytest.approx(2, rel=0.1) for coarse, fine in pairwise(ddim))
    assert adams[-1] < ddim[-1] / 10


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", CASES[1::2], ids=str)
def test_points_end_with_the_law_of_the_data(options: dict[str, Any], eta: float) -> None:
    """Whatever noise is added on the way."""
    scheduler, generator = AdamsScheduler(clip_sample=False, **options), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(240)
    x_t = torch.randn(20_000, 1, dtype=torch.float64, generator=generator)
    for t in scheduler.timesteps.tolist():
        x_t = scheduler.step(ideal(scheduler, x_t, t), t, x_t, eta=eta, generator=generator).prev_sample
    assert x_t.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x_t.std().item() == pytest.approx(STD, rel=0.02)


def test_noise_is_ddims_and_so_is_the_first_step() -> None:
    output, sample, fresh = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    adams, ddim = AdamsScheduler(clip_sample=False), DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    for scheduler in (adams, ddim):
        scheduler.set_timesteps(5)
    expected = ddim.step(output, 999, sample, eta=0.7, generator=torch.Generator().manual_seed(1))
    found = adams.step(output, 999, sample, eta=0.7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.prev_sample, expected.prev_sample)
    assert torch.equal(found.pred_original_sample, expected.pred_original_sample)
    assert not torch.allclose(adams.step(output, 799, fresh)[0], ddim.step(output, 799, fresh)[0], atol=1e-3)


def test_the_last_step_takes_the_line_to_clean_data() -> None:
    """With x_0 linear in the angle it is exact: a + b phi becomes a."""
    scheduler = AdamsScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(timesteps=[700, 300])
    a, b, x_t = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (700, 300):
        x_t = scheduler.step(a + b * scheduler.diffusion.angle(t), t, x_t).prev_sample
    torch.testing.assert_close(x_t, a)


def test_sampling_begins_anew_with_new_timesteps_and_at_a_higher_one() -> None:
    output, sample = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = AdamsScheduler()
    scheduler.set_timesteps(5)
    first = scheduler.step(output, 999, sample).prev_sample
    scheduler.step(2 * output, 799, sample)
    assert torch.equal(scheduler.step(output, 999, sample).prev_sample, first)
    scheduler.step(2 * output, 799, sample)
    scheduler.set_timesteps(5)
    fresh = AdamsScheduler()
    fresh.set_timesteps(5)
    assert torch.equal(scheduler.step(output, 599, sample)[0], fresh.step(output, 599, sample, return_dict=False)[0])


def test_bad_input() -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="AdamsScheduler has no timesteps yet; call set_timesteps"):
        AdamsScheduler().step(x, 10, x)
    scheduler = AdamsScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"eta=2.0 is outside 0 \(DDIM\) .. 1"):
        scheduler.step(x, 999, x, eta=2.0)
    with pytest.raises(ValueError, match="says nothing about the image at timestep 999"):
        AdamsScheduler(rescale_betas_zero_snr=True)._predict(x, 999, x)


@pytest.fixture
def pipe() -> Any:
    torch.manual_seed(0)
    unet = UNet2DModel(**{**TWO_LEVELS, "sample_size": 8}).eval()
    pipe = DDPMCustomPipeline(unet, AdamsScheduler(beta_schedule="squaredcos_cap_v2"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_saved_pipeline_comes_back_and_is_ddim_where_we_are_not_installed(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["_class_name"], index["scheduler"]) == ("DDIMPipeline", ["diffusers", "DDIMScheduler"])
    again = DDPMCustomPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is AdamsScheduler
    again.set_progress_bar_config(disable=True)
    ours, other = (p(seeds=range(2), num_inference_steps=3, output_type="uint8").images for p in (pipe, again))
    assert torch.equal(ours, other)
    given = DDPMCustomPipeline.from_pretrained(tmp_path, scheduler=DDPMScheduler())
    assert type(given.scheduler) is DDPMScheduler
    script = (
        "import sys; sys.modules['ddpm_hf'] = None\n"
        "import diffusers\n"
        f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path)!r})\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        "pipe(num_inference_steps=2)\n"
        "print(type(pipe).__name__, type(pipe.scheduler).__name__, pipe.scheduler.timesteps.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "DDIMPipeline DDIMScheduler [999, 499]\n"
    assert "ddpm_hf" not in done.stderr
    assert "not expected" not in done.stderr


def test_diffusers_ddpm_pipeline_draws_with_it(pipe: Any) -> None:
    theirs = diffusers.DDPMPipeline(pipe.unet, pipe.scheduler)
    theirs.set_progress_bar_config(disable=True)
    images = [
        p(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
        for p in (pipe, theirs)
    ]
    assert abs(images[0] - images[1]).max() < 1e-3
