"""Guidance between two noise levels only: which steps that is, and that the others are the network's own."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.sampling.denoising import SamplingOptions
from ddpm_hf.sampling.guidance import guided_steps
from ddpm_hf.sampling.request import Request
from ddpm_hf.sampling.samplers import SAMPLERS, make_scheduler
from ddpm_hf.training.evaluation_settings import EvaluationConfig
from tests.networks import TWO_LEVELS

CLASSES = 3


@pytest.fixture(scope="module")
def pipe() -> DDPMCustomPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=CLASSES + 1, **TWO_LEVELS)
    found = DDPMCustomPipeline(unet.eval(), DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False))
    found.set_progress_bar_config(disable=True)
    return found


def drawn(pipe: DDPMCustomPipeline, interval: Any, scale: float = 4.0, **options: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(
        seeds=range(4), class_labels=[0, 1, 2, 0], num_inference_steps=8, guidance_scale=scale,
        guidance_interval=interval, output_type="pt", **options,
    ).images  # fmt: skip
    return images


def test_the_noise_levels_are_those_of_the_process() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    sigmas = [math.sqrt(1 / float(scheduler.alphas_cumprod[t]) - 1) for t in scheduler.timesteps]
    found = guided_steps(scheduler, (sigmas[12], sigmas[5]))
    assert found == [5 <= i < 12 for i in range(20)]  # (low, high]: the low end itself is out
    assert guided_steps(scheduler, None) == [True] * 20
    unread = SimpleNamespace(timesteps=torch.zeros(7, device="meta"))  # a look at them would wait for a device
    assert guided_steps(unread, None) == [True] * 7


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_knows_its_noise_levels(name: str, pipe: DDPMCustomPipeline) -> None:
    """Guided from the first to the last step with increasing bounds, also between whole timesteps."""
    scheduler = make_scheduler(pipe.scheduler.config, name)
    scheduler.set_timesteps(10)
    counts = [sum(guided_steps(scheduler, (0, high))) for high in (0.01, 0.5, 2.0, 50.0, 1e12)]
    assert counts == sorted(counts)
    assert counts[0] <= 2
    assert 0 < counts[2] < counts[-1] == len(scheduler.timesteps)


def test_all_levels_are_guidance_and_none_are_no_guidance(pipe: DDPMCustomPipeline) -> None:
    assert torch.equal(drawn(pipe, (0.0, 1e12)), drawn(pipe, None))
    # A guided network sees twice the images at once, which rounds otherwise, so no bits here.
    unguided = drawn(pipe, None, scale=1.0, use_clipped_model_output=True)
    assert torch.allclose(drawn(pipe, (1e11, 1e12)), unguided, atol=1e-5)
    some = drawn(pipe, (0.3, 3.0))
    assert (some - drawn(pipe, None)).abs().max() > 1e-3
    assert (some - unguided).abs().max() > 1e-3


def test_guided_steps_alone_ask_the_network_twice(pipe: DDPMCustomPipeline) -> None:
    sizes: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    drawn(pipe, (0.3, 3.0))
    hook.remove()
    pipe.scheduler.set_timesteps(8)
    assert sizes == [8 if is_guided else 4 for is_guided in guided_steps(pipe.scheduler, (0.3, 3.0))]
    assert len(set(sizes)) == 2


@pytest.mark.parametrize("interval", [(2.0, 0.2), (-1.0, 1.0), (1.0, 1.0)])
def test_what_is_no_interval_is_refused(interval: tuple[float, float]) -> None:
    sentence = "guidance_interval is .* and must be two noise levels, the lower one first"
    with pytest.raises(ValueError, match=sentence):
        SamplingOptions(guidance_scale=2.0, guidance_interval=interval)
    with pytest.raises(ValueError, match=sentence):
        Request(guidance_scale=2.0, guidance_interval=interval)
    with pytest.raises(ValueError, match=f"evaluation.{sentence}"):
        EvaluationConfig(guidance_scale=2.0, guidance_interval=interval)


def test_an_interval_without_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="must be null where guidance_scale is 1, which is no guidance"):
        SamplingOptions(guidance_interval=(0.2, 2.0))
