"""Our schedulers against diffusers' over the whole grid of options, in float64: the oracle is given our float64 table.

The few places where diffusers is wrong are left out here and stand in test_scheduler_differences.py.
"""

import inspect
import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import ddpm_hf

B, C, SIZE = 2, 3, 6
SPACINGS = [("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)]
CLIPPINGS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.4},
    {"thresholding": True, "sample_max_value": 1.7, "dynamic_thresholding_ratio": 0.9},
]
SCHEDULES: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(0.001, 0.2, 100).tolist(), "num_train_timesteps": 100},
]
DDPM_SCHEDULES = [*SCHEDULES, {"beta_schedule": "sigmoid"}, {"beta_schedule": "laplace"}]


def name_of(options: dict[str, Any]) -> str:
    return options.get("beta_schedule", "trained_betas")


def pair(name: str, **config: Any) -> tuple[Any, Any]:
    ours, theirs = getattr(ddpm_hf, name)(**config), getattr(diffusers, name)(**config)
    tables = (ours.diffusion.alphas_cumprod, theirs.alphas_cumprod.double())
    torch.testing.assert_close(*tables, rtol=2e-5, atol=1e-6)  # float32's rounding, in a product of a thousand
    theirs.alphas_cumprod = ours.diffusion.alphas_cumprod
    if name == "DDIMScheduler":
        theirs.final_alpha_cumprod = (
            theirs.alphas_cumprod[0] if not theirs.config.set_alpha_to_one else torch.tensor(1.0)
        )
    return ours, theirs


def randn(seed: int, channels: int = C) -> torch.Tensor:
    return torch.randn(B, channels, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: Any, theirs: Any) -> None:
    # The scale of x_0 before clipping is up to 1 / sqrt(alpha_bar), so compare relative to the largest number.
    for key in ("prev_sample", "pred_original_sample"):
        scale = theirs[key].abs().max().item()
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-9, atol=1e-9 * scale)


def probes(timesteps: torch.Tensor) -> list[torch.Tensor]:
    """The first two, the middle and the last two."""
    last = len(timesteps) - 1
    return [timesteps[i] for i in sorted({0, min(1, last), last // 2, max(last - 1, 0), last})]


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", DDPM_SCHEDULES, ids=name_of)
def test_ddpm_step(schedule: dict[str, Any], prediction_type: str, variance_type: str) -> None:
    channels = 2 * C if variance_type == "learned_range" else C
    for (spacing, offset), clipping, zero_snr in itertools.product(SPACINGS, CLIPPINGS, (False, True)):
        config = {
            **schedule, **clipping, "variance_type": variance_type, "prediction_type": prediction_type,
            "timestep_spacing": spacing, "steps_offset": offset, "rescale_betas_zero_snr": zero_snr,
        }  # fmt: skip
        if zero_snr and (prediction_type == "epsilon" or "trained_betas" in schedule):
            continue
        ours, theirs = pair("DDPMScheduler", **config)
        for steps in (1 if spacing != "linspace" else 2, 5, 7, 50):
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            assert ours.timesteps.tolist() == theirs.timesteps.tolist()
            for t in probes(ours.timesteps):
                assert ours.previous_timestep(t) == theirs.previous_timestep(t)
                if variance_type in ("fixed_large", "learned_range") and ours.previous_timestep(t) < 0:
                    continue  # D7: diffusers adds noise to the finished image
                args = (randn(1, channels), t, randn(2))
                generators = (torch.Generator().manual_seed(3) for _ in range(2))
                assert_same(
                    ours.step(*args, generator=next(generators)), theirs.step(*args, generator=next(generators))
                )


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_ddim_step(schedule: dict[str, Any], prediction_type: str) -> None:
    # linspace agrees at the full count only, and the others where the count divides T: D1
    grids = [("leading", 0, 7), ("leading", 0, 50), ("leading", 1, 20), ("trailing", 0, 50), ("linspace", 0, None)]
    steps_options = itertools.product((0.0, 0.4, 1.0), (False, True))
    for (spacing, offset, steps), clipping, to_one in itertools.product(grids, CLIPPINGS, (True, False)):
        config = {
            **schedule, **clipping, "prediction_type": prediction_type, "set_alpha_to_one": to_one,
            "timestep_spacing": spacing, "steps_offset": offset,
        }  # fmt: skip
        ours, theirs = pair("DDIMScheduler", **config)
        steps = steps or len(ours)
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        for t, (eta, reclipped) in itertools.product(probes(ours.timesteps), steps_options):
            args = (randn(1), t, randn(2), eta, reclipped)
            generators = (torch.Generator().manual_seed(3) for _ in range(2))
            assert_same(ours.step(*args, generator=next(generators)), theirs.step(*args, generator=next(generators)))
            assert_same(ours.step(*args, variance_noise=randn(4)), theirs.step(*args, variance_noise=randn(4)))


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_time_grids(name: str, spacing: str) -> None:
    """For every number of steps where diffusers' grid is one: not 62 trailing ones (D3), nor one linspace step (D4)."""
    ours, theirs = pair(name, timestep_spacing=spacing)
    wrong = 0
    for steps in range(1, 1001):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        if spacing == "linspace" and steps == 1:
            continue
        if len(theirs.timesteps) != steps:
            wrong += 1
            assert theirs.timesteps[-1] == -1
            assert ours.timesteps.tolist() == theirs.timesteps[:-1].tolist()
        else:
            assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert wrong == (62 if spacing == "trailing" else 0)


def test_custom_timesteps() -> None:
    ours, theirs = pair("DDPMScheduler")
    for timesteps in ([900, 500, 3], [999, 0], [17]):
        ours.set_timesteps(timesteps=timesteps)
        theirs.set_timesteps(timesteps=timesteps)
        for t in timesteps:
            assert ours.previous_timestep(t) == theirs.previous_timestep(t)
            generators = (torch.Generator().manual_seed(3) for _ in range(2))
            args = (randn(1), t, randn(2))
            assert_same(ours.step(*args, generator=next(generators)), theirs.step(*args, generator=next(generators)))


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_forward_process(name: str) -> None:
    ours, theirs = pair(name)
    t = torch.tensor([0, 999])
    torch.testing.assert_close(ours.add_noise(randn(1), randn(2), t), theirs.add_noise(randn(1), randn(2), t))
    torch.testing.assert_close(ours.get_velocity(randn(1), randn(2), t), theirs.get_velocity(randn(1), randn(2), t))
    assert ours.scale_model_input(t, 3) is t
    assert ours.init_noise_sigma == theirs.init_noise_sigma
    assert ours.order == theirs.order
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_float32_end_to_end(name: str) -> None:
    """The plain classes with their own tables, over a whole chain with noise: equal to float32's rounding."""
    ours, theirs = getattr(ddpm_hf, name)(), getattr(diffusers, name)()
    options = {"eta": 0.7} if name == "DDIMScheduler" else {}
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(40)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(B, C, SIZE, SIZE, generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(0.3 * x), t, x, generator=generator, **options).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_constructor_is_diffusers(name: str) -> None:
    """The same keys in the same positions with the same defaults, so that configs and calls mean the same."""
    ours, theirs = (inspect.signature(getattr(library, name).__init__) for library in (ddpm_hf, diffusers))
    assert {n: p.default for n, p in ours.parameters.items()} == {n: p.default for n, p in theirs.parameters.items()}
    assert list(ours.parameters) == list(theirs.parameters)
