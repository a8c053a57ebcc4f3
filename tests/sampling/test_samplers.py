"""The table of samplers: each draws the right distribution, starts anew for each batch, and others are refused."""

import logging
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler
from ddpm_hf.diffusion.process import PREDICTION_TYPES
from ddpm_hf.sampling import samplers
from ddpm_hf.sampling.denoising import SamplingOptions, denoise, sample_images
from ddpm_hf.sampling.samplers import SAMPLERS, check_sampler, make_scheduler, sampler_of
from tests.sampling.test_denoising import make_unet

MEAN, STD = 0.2, 0.3


class Ideal(nn.Module):
    """What a perfect network says of pixels that are independent and N(MEAN, STD^2); it has no rounding of batches."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dtype = torch.float32
        self.has_variance = False
        self.config = SimpleNamespace(sample_size=8, in_channels=1, num_class_embeds=None)
        self._alphas_cumprod = scheduler.diffusion.alphas_cumprod
        self._diffusion = scheduler.diffusion
        self._prediction_type = scheduler.config.prediction_type

    def forward(self, x_t: Tensor, t: Any, class_labels: Tensor | None = None) -> Any:
        time = round(float(t))
        alpha_bar = float(self._alphas_cumprod[time])
        share = alpha_bar * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        x_0 = MEAN + share * (x_t / alpha_bar**0.5 - MEAN)
        noise = (x_t - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
        output = self._diffusion.target(x_0, noise, torch.tensor(time), self._prediction_type)
        return SimpleNamespace(sample=torch.cat([output, output], dim=1) if self.has_variance else output)


def model(prediction_type: str = "epsilon", **options: Any) -> tuple[Ideal, Any]:
    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False, **options)
    return Ideal(scheduler), scheduler.config


def drawn(unet: Ideal, scheduler: Any, batch_size: int = 64) -> Tensor:
    return sample_images(unet, scheduler, range(64), SamplingOptions(batch_size=batch_size)).float() / 127.5 - 1


def rows() -> list[tuple[str, str, str]]:
    """Every sampler with every prediction type and every spacing that it is said to be right for."""
    found = []
    for name, row in SAMPLERS.items():
        first, *others = row.prediction_types or PREDICTION_TYPES
        found += [(name, first, spacing) for spacing in row.timestep_spacings]
        found += [(name, other, row.timestep_spacings[0]) for other in others]
    return found


@pytest.mark.parametrize(("name", "prediction_type", "spacing"), rows())
def test_a_sampler_draws_the_distribution_of_an_ideal_network(name: str, prediction_type: str, spacing: str) -> None:
    unet, config = model(prediction_type)
    scheduler = make_scheduler(config, name, spacing)
    scheduler.set_timesteps(120)
    images = drawn(unet, scheduler)
    assert abs(images.mean() - MEAN) < 0.02
    assert abs(images.std() - STD) < 0.03


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_batch_starts_anew(name: str) -> None:
    """Many of diffusers' remember the steps before: a second batch must not start from the first one's."""
    unet, config = model()
    scheduler = make_scheduler(config, name)
    scheduler.set_timesteps(7)
    whole = drawn(unet, scheduler)
    assert torch.equal(drawn(unet, scheduler, batch_size=16), whole)
    assert len(whole.unique()) > 50


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_takes_its_fewest_steps(name: str) -> None:
    unet, config = model()
    scheduler = make_scheduler(config, name, "trailing")
    scheduler.set_timesteps(SAMPLERS[name].fewest_steps)
    assert abs(drawn(unet, scheduler).mean() - MEAN) < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_draws_from_a_network_that_learned_its_variance(name: str) -> None:
    """Only DDPM reads the second half of the channels; to the others it is the network without them."""
    unet, config = model()
    learned = model(variance_type="learned_range")[1]
    images = []
    for own, has_variance in ((config, False), (learned, True)):
        unet.has_variance = has_variance
        scheduler = make_scheduler(own, name)
        scheduler.set_timesteps(7)
        images.append(drawn(unet, scheduler))
    assert images[1].std() > 0.1
    if name != "ddpm":
        assert torch.equal(*images)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_table_says_which_add_noise(name: str) -> None:
    unet, config = model()
    scheduler = make_scheduler(config, name)
    scheduler.set_timesteps(7)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (denoise(unet, scheduler, noise, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(first, second) != SAMPLERS[name].is_stochastic


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_is_found_by_its_scheduler(name: str) -> None:
    _, config = model()
    assert sampler_of(make_scheduler(config, name)) is SAMPLERS[name]
    assert sampler_of(diffusers.DDPMParallelScheduler()) is None


def test_what_a_sampler_is_not_right_for_is_refused() -> None:
    for name, row in SAMPLERS.items():
        for prediction_type in set(PREDICTION_TYPES) - set(row.prediction_types or PREDICTION_TYPES):
            with pytest.raises(ValueError, match=f"{prediction_type!r}; use the sampler ddim or ddpm"):
                make_scheduler(model(prediction_type)[1], name)
    with pytest.raises(ValueError, match=r"no timestep_spacing 'quadratic'.*or the sampler ddim or ddpm or adams"):
        make_scheduler(model()[1], "unipc", "quadratic")
    with pytest.raises(ValueError, match=r"eta is 0\.5; make it 0, or use the sampler ddim"):
        check_sampler("ddpm", eta=0.5)
    with pytest.raises(ValueError, match="pndm takes at least 4 steps, and num_inference_steps is 3"):
        check_sampler("pndm", num_inference_steps=3)
    with pytest.raises(ValueError, match="'dimm' is not known; use one of ddim, ddpm"):
        check_sampler("dimm")


OTHERS = (
    *("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "CMStochasticIterativeScheduler", "LCMScheduler", "IPNDMScheduler"),
)


@pytest.mark.parametrize("name", OTHERS)
def test_schedulers_for_other_models_are_refused_by_name(name: str) -> None:
    unet, config = model()
    scheduler = getattr(diffusers, name).from_config(config)
    pipe = DDPMCustomPipeline(make_unet(), scheduler)
    with pytest.raises(ValueError, match=f"{name} is for .*; use a scheduler of one of these: DDIMScheduler"):
        pipe(num_inference_steps=4)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"{name} is for "):
        drawn(unet, scheduler)


def test_flow_matching_by_its_options_is_refused_too() -> None:
    pipe = DDPMCustomPipeline(make_unet(), diffusers.UniPCMultistepScheduler(use_flow_sigmas=True))
    with pytest.raises(ValueError, match="is for flow-matching networks"):
        pipe(num_inference_steps=4)


def test_a_grid_that_starts_where_images_are_clean_is_refused() -> None:
    pipe = DDPMCustomPipeline(make_unet().eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for grid in ({"num_inference_steps": 1}, {"timesteps": [20, 10, 0]}):
        with pytest.raises(ValueError, match="images are nearly clean"):
            pipe(**grid)
    pipe(num_inference_steps=1, timestep_spacing="trailing")
    x_t = torch.zeros(1, 3, 8, 8)
    pipe.scheduler.set_timesteps(timesteps=[20, 10, 0])
    denoise(pipe.unet, pipe.scheduler, x_t)  # an image with a little noise is no pure noise


def test_a_start_among_half_clean_images_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    samplers._warn_once.cache_clear()
    unet, config = model("v_prediction", beta_schedule="squaredcos_cap_v2")
    scheduler = make_scheduler(config, "ddim")
    with caplog.at_level(logging.WARNING, samplers.__name__):
        for steps in (10, 2):
            scheduler.set_timesteps(steps)
            caplog.clear()
            drawn(unet, scheduler)
            assert [record.message[:60] for record in caplog.records] == (
                ["The timesteps start at timestep 500 of 1000, where images are"[:60]] if steps == 2 else []
            )


def test_heun_is_warned_of_once_where_its_first_step_is_too_long(caplog: pytest.LogCaptureFixture) -> None:
    samplers._warn_once.cache_clear()
    said = {}
    for beta_schedule in ("linear", "squaredcos_cap_v2"):
        for spacing in ("leading", "linspace", "trailing"):
            unet, config = model("v_prediction", beta_schedule=beta_schedule)
            scheduler = make_scheduler(config, "heun", spacing)
            scheduler.set_timesteps(10)
            caplog.clear()
            with caplog.at_level(logging.WARNING, samplers.__name__):
                for _ in range(2):
                    drawn(unet, scheduler)
            said[beta_schedule, spacing] = len(caplog.records)
    assert [key for key, count in said.items() if count] == [("squaredcos_cap_v2", s) for s in ("linspace", "trailing")]
    assert max(said.values()) == 1


def test_the_documentation_says_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    shown = [name for name in SAMPLERS if f"| `{name}` |" in page]
    assert len(shown) >= 13
    for name in shown:
        row = SAMPLERS[name]
        noise = "yes" if row.is_stochastic else "by eta" if row.has_eta else "no"
        types = "all" if row.prediction_types is None else ", ".join(row.prediction_types)
        assert f"| `{name}` | {row.description} | {noise} | {types} | {', '.join(row.timestep_spacings)} |\n" in page


def test_the_table_is_read_without_torch() -> None:
    line = "import sys, ddpm_hf.sampling.samplers; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", line], text=True).split() == ["False", "False"]
    for row in SAMPLERS.values():
        assert issubclass(resolve_name(row.scheduler), diffusers.SchedulerMixin)
