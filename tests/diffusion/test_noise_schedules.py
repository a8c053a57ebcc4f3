"""Schedules: their defining properties, and zero terminal SNR."""

import pytest
import torch

from ddpm_hf.diffusion.choices import NOISE_SCHEDULES
from ddpm_hf.diffusion.noise_schedules import make_betas, rescale_betas_zero_snr


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 10, 1000])
def test_betas_are_variances(name: str, num_steps: int) -> None:
    betas = make_betas(name, num_steps)
    assert betas.dtype == torch.float64
    assert betas.shape == (num_steps,)
    assert (betas > 0).all()
    assert (betas <= 1).all()


def test_definitions() -> None:
    """Each from its own definition, written in another way."""
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(make_betas("linear"), 1e-4 + (0.02 - 1e-4) * t / 999)
    torch.testing.assert_close(make_betas("scaled_linear"), (0.01 + (0.02**0.5 - 0.01) * t / 999) ** 2)
    torch.testing.assert_close(make_betas("const"), torch.full((1000,), 0.02, dtype=torch.float64))
    warmup = make_betas("warmup10")
    torch.testing.assert_close(warmup[:100], 1e-4 + (0.02 - 1e-4) * t[:100] / 99)
    assert (warmup[100:] == 0.02).all()
    assert (make_betas("warmup50")[500:] == 0.02).all()
    assert (make_betas("warmup50")[:499] < 0.02).all()
    torch.testing.assert_close(torch.cumprod(1 - make_betas("jsd"), 0), (999 - t) / 1000, rtol=0, atol=1e-12)
    # The cosine schedule: before the cap, alpha_bar is the squared cosine, relative to its value at 0.
    cosine = torch.cos(((t + 1) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    start = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2
    torch.testing.assert_close(torch.cumprod(1 - make_betas("squaredcos_cap_v2"), 0)[:990], (cosine / start)[:990])


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_zero_terminal_snr(name: str) -> None:
    """Lin et al. 2023, alg. 1: sqrt(alpha_bar) keeps its first value, ends at 0, and is else shifted and scaled."""
    before = torch.cumprod(1 - make_betas(name), 0).sqrt()
    after = torch.cumprod(1 - rescale_betas_zero_snr(make_betas(name)), 0).sqrt()
    assert after[-1] == 0
    torch.testing.assert_close(after[0], before[0])
    slope = (after[1:] - after[:-1])[:-1] / (before[1:] - before[:-1])[:-1]
    torch.testing.assert_close(slope, slope[0].expand_as(slope), rtol=1e-4, atol=0)


def test_bad_input() -> None:
    with pytest.raises(
        NotImplementedError, match=r"beta_schedule='nope' is not known; use one of linear, scaled_linear"
    ):
        make_betas("nope")
    with pytest.raises(ValueError, match=r"num_train_timesteps=0 is not a number of steps; use 1 or more"):
        make_betas("linear", 0)
