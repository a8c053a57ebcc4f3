"""Every place where we differ from diffusers 0.42 on purpose: what it does, and what is right.

docs/differences.md tells them. D1 to D14 are its numbers.
"""

import logging
from typing import Any

import diffusers
import pytest
import torch

import ddpm_hf

BOTH = pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
NOISE, ZEROS = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)


def randn(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def spread_of_result(scheduler: Any, steps: int) -> float:
    """The standard deviation that DDIM gives to data N(0, 0.5^2), with the exact noise model and x_T of N(0, 1)."""
    scheduler.set_timesteps(steps)
    alpha_bar = scheduler.alphas_cumprod.double()
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for t in scheduler.timesteps:
        noise = (1 - alpha_bar[t]).sqrt() * x / (0.25 * alpha_bar[t] + 1 - alpha_bar[t])
        x = scheduler.step(noise, t, x).prev_sample
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_goes_to_the_next_of_the_grid(spacing: str) -> None:
    """D1, D2, D5: diffusers goes to t - T // N, which costs a lot above 100 steps; the last step ends at clean data."""
    options = {"timestep_spacing": spacing, "clip_sample": False}
    for steps in (300, 600):
        assert abs(spread_of_result(diffusers.DDIMScheduler(**options), steps) - 0.5) > 0.03
        assert abs(spread_of_result(ddpm_hf.DDIMScheduler(**options), steps) - 0.5) < 0.006
    theirs, ours = diffusers.DDIMScheduler(**options), ddpm_hf.DDIMScheduler(**options)
    for scheduler, is_right in ((theirs, False), (ours, True)):
        scheduler.set_timesteps(600)
        result = scheduler.step(NOISE, scheduler.timesteps[-1], randn(0))
        assert torch.equal(result.prev_sample, result.pred_original_sample) is (is_right or spacing == "linspace")


@BOTH
def test_trailing_has_as_many_steps_as_asked(name: str) -> None:
    """D3: rounding gives diffusers one step more for 62 counts, at t = -1, its noisiest."""
    theirs, ours = (getattr(library, name)(timestep_spacing="trailing") for library in (diffusers, ddpm_hf))
    theirs.set_timesteps(61)
    ours.set_timesteps(61)
    assert theirs.timesteps[-2:].tolist() == [15, -1]
    assert ours.timesteps[-2:].tolist() == [32, 15]


@BOTH
def test_one_linspace_step_starts_at_the_noise(name: str) -> None:
    """D4: diffusers starts it at t = 0."""
    theirs, ours = (getattr(library, name)(timestep_spacing="linspace") for library in (diffusers, ddpm_hf))
    theirs.set_timesteps(1)
    ours.set_timesteps(1)
    assert theirs.timesteps.tolist() == [0]
    assert ours.timesteps.tolist() == [999]


@BOTH
def test_leading_steps_that_miss_the_noise_are_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """D4: 600 leading steps of 1000 start at 599. That is the definition of the grid, so we keep it, and say so."""
    ours = getattr(ddpm_hf, name)()
    for steps in (7, 50, 100, 999, 1000):
        ours.set_timesteps(steps)
    assert caplog.messages == []
    ours.set_timesteps(1)
    assert "1 leading steps start at timestep 0 of 1000" in caplog.messages.pop()
    ours.set_timesteps(600)
    assert ours.timesteps[0] == 599
    assert "600 leading steps start at timestep 599 of 1000" in caplog.text


@BOTH
def test_an_offset_off_the_table_is_refused(name: str) -> None:
    """D4: diffusers takes it, and fails with an IndexError in `step`."""
    theirs, ours = (getattr(library, name)(steps_offset=1) for library in (diffusers, ddpm_hf))
    theirs.set_timesteps(1000)
    assert theirs.timesteps[0] == 1000
    with pytest.raises(ValueError, match="1000 leading steps with steps_offset=1 start at 1000, but the last of 1000"):
        ours.set_timesteps(1000)


@BOTH
def test_small_noise_survives_half_precision(name: str) -> None:
    """D6: diffusers rounds alpha_bar before it takes 1 - alpha_bar, so the first steps add no noise at all."""
    t = torch.tensor([0])
    for dtype in (torch.float16, torch.bfloat16):
        theirs, ours = (
            getattr(library, name)().add_noise(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype), t).item()
            for library in (diffusers, ddpm_hf)
        )
        assert theirs == 0
        assert ours == pytest.approx(0.01, rel=2**-8)


@pytest.mark.parametrize("spacing", ["trailing", "offset"])
def test_no_noise_on_the_finished_image(spacing: str) -> None:
    """D7: with fixed_large diffusers adds noise to the result when the grid ends above 0."""
    options = {"steps_offset": 1} if spacing == "offset" else {"timestep_spacing": "trailing"}
    for library, is_clean in ((diffusers, False), (ddpm_hf, True)):
        scheduler = library.DDPMScheduler(variance_type="fixed_large", **options)
        scheduler.set_timesteps(10)
        result = scheduler.step(NOISE, scheduler.timesteps[-1], randn(0), generator=torch.Generator().manual_seed(0))
        assert torch.equal(result.prev_sample, result.pred_original_sample) is is_clean


def test_log_variances_are_finite() -> None:
    """D8: fixed_large_log is fixed_large, and `learned` is a log-variance, as in Improved DDPM; diffusers gives NaN."""

    def step(library: Any, variance_type: str, output: torch.Tensor) -> torch.Tensor:
        scheduler = library.DDPMScheduler(variance_type=variance_type)
        prev_sample: torch.Tensor = scheduler.step(
            output, 500, randn(0), generator=torch.Generator().manual_seed(0)
        ).prev_sample
        return prev_sample

    learned = torch.cat([NOISE, torch.full_like(NOISE, -5.0)], dim=1)
    assert step(diffusers, "fixed_large_log", NOISE).isnan().all()
    assert step(diffusers, "learned", learned).isnan().all()
    torch.testing.assert_close(step(ddpm_hf, "fixed_large_log", NOISE), step(ddpm_hf, "fixed_large", NOISE))
    mean = step(ddpm_hf, "learned", torch.cat([NOISE, torch.full_like(NOISE, -200.0)], dim=1))
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(step(ddpm_hf, "learned", learned), mean + torch.exp(torch.tensor(-2.5)) * noise)


def test_unknown_variance_types_are_refused() -> None:
    """D9: diffusers runs them as fixed_small."""
    diffusers.DDPMScheduler(variance_type="nonsense").step(NOISE, 500, ZEROS)
    with pytest.raises(ValueError, match="variance_type='nonsense' is not known; use one of fixed_small"):
        ddpm_hf.DDPMScheduler(variance_type="nonsense").step(NOISE, 500, ZEROS)


def test_learned_variance_without_its_channels_is_refused() -> None:
    """D9: a bare TypeError in diffusers; and the other way round a shape error."""
    with pytest.raises(TypeError):
        diffusers.DDPMScheduler(variance_type="learned_range").step(NOISE, 500, ZEROS)
    with pytest.raises(
        ValueError, match="variance_type='learned_range' needs a network with twice the image's channels"
    ):
        ddpm_hf.DDPMScheduler(variance_type="learned_range").step(NOISE, 500, ZEROS)
    with pytest.raises(
        ValueError, match="the model's output has 6 channels and the sample 3; they must be equal; a netw"
    ):
        ddpm_hf.DDPMScheduler().step(torch.cat([NOISE, NOISE], dim=1), 500, ZEROS)


def test_ddim_takes_networks_that_learned_a_variance() -> None:
    """diffusers fails on their second half of channels; DDIM has no use for it."""
    theirs, ours = diffusers.DDIMScheduler(), ddpm_hf.DDIMScheduler()
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    with pytest.raises(RuntimeError):
        theirs.step(torch.cat([NOISE, NOISE], dim=1), 500, ZEROS)
    with_variance = ours.step(torch.cat([NOISE, 7 * NOISE], dim=1), 500, ZEROS).prev_sample
    assert torch.equal(with_variance, ours.step(NOISE, 500, ZEROS).prev_sample)


@BOTH
def test_thresholding_that_does_nothing_is_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """D10: with the default sample_max_value of 1 dynamic thresholding is clipping."""
    x = torch.linspace(-5, 5, 300).reshape(1, 3, 10, 10)
    scheduler = getattr(ddpm_hf, name)(thresholding=True)
    torch.testing.assert_close(scheduler.denoiser.restriction(x), x.clamp(-1, 1))
    assert "thresholding=True with sample_max_value=1.0 only clips to [-1, 1]" in caplog.text


def test_ddim_at_eta_1_is_ddpm_with_the_clipped_noise() -> None:
    """D11, kept: while it clips, only use_clipped_model_output=True makes eta = 1 DDPM's step."""
    ddpm, ddim = ddpm_hf.DDPMScheduler(), ddpm_hf.DDIMScheduler()
    ddim.set_timesteps(1000)
    x, output = randn(0), 3 * randn(1)

    def ddim_step(clipped: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return ddim.step(output, 300, x, 1.0, clipped, generator=generator).prev_sample  # type: ignore[union-attr]

    expected = ddpm.step(output, 300, x, generator=torch.Generator().manual_seed(0)).prev_sample  # type: ignore[union-attr]
    torch.testing.assert_close(ddim_step(True), expected)
    assert (ddim_step(False) - expected).abs().max() > 0.1


@BOTH
def test_epsilon_at_zero_snr_is_refused(name: str) -> None:
    """D12: x_0 is x_T / 0 there; diffusers clips it to a pattern of signs, or gives infinities."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    theirs, ours = (getattr(library, name)(**options) for library in (diffusers, ddpm_hf))
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    assert theirs.step(0.9 * NOISE, 999, NOISE).pred_original_sample.isinf().all()
    with pytest.raises(ValueError, match="prediction_type='epsilon' says nothing about the image at timestep 999"):
        ours.step(0.9 * NOISE, 999, NOISE)
    ours.step(NOISE, 899, NOISE)
    ours = getattr(ddpm_hf, name)(**options, prediction_type="v_prediction")
    ours.set_timesteps(10)
    assert ours.step(NOISE, 999, NOISE).prev_sample.isfinite().all()


@BOTH
def test_a_time_between_two_of_the_grid_goes_on_with_the_lower(name: str) -> None:
    """D13: an IndexError in diffusers' DDPM."""
    theirs = diffusers.DDPMScheduler()
    theirs.set_timesteps(10)
    with pytest.raises(IndexError):
        theirs.step(NOISE, 555, ZEROS)
    ours = getattr(ddpm_hf, name)()
    ours.set_timesteps(10)
    assert ours.previous_timestep(555) == 500
    assert ours.previous_timestep(500) == 400
    assert ours.previous_timestep(0) == -1
    assert ours.step(NOISE, 555, ZEROS).prev_sample.isfinite().all()


@BOTH
def test_times_out_of_range_are_refused(name: str) -> None:
    """D13: diffusers takes t = -1 for the noisiest step of all. To us it is clean data, in `add_noise` alone."""
    theirs, ours = getattr(diffusers, name)(), getattr(ddpm_hf, name)()
    ours.set_timesteps(10)
    assert theirs.add_noise(torch.zeros(1), torch.ones(1), torch.tensor([-1])).item() > 0.99
    assert ours.add_noise(torch.zeros(1), torch.ones(1), torch.tensor([-1])).item() == 0
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=rf"timestep={t} is outside 0 .. 999"):
            ours.step(NOISE, t, ZEROS)
    for t in (5.0, torch.tensor([1, 2]), [3]):
        with pytest.raises(ValueError, match="is not one integer"):
            ours.step(NOISE, t, ZEROS)


@BOTH
def test_bad_grids_are_refused_by_name(name: str) -> None:
    """D14: ZeroDivisionError, TypeError, IndexError, or silence in diffusers."""
    ours = getattr(ddpm_hf, name)()
    for arguments, message in [
        ({}, "either num_inference_steps or timesteps"),
        ({"num_inference_steps": 5, "timesteps": [3]}, "either num_inference_steps or timesteps"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 cannot be taken of 1000"),
        ({"num_inference_steps": -3}, "num_inference_steps=-3 cannot be taken of 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001 cannot be taken of 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 is not one integer"),
        ({"timesteps": []}, "timesteps is empty"),
        ({"timesteps": [5, -2]}, "outside 999 .. 0"),
        ({"timesteps": [1000, 5]}, "outside 999 .. 0"),
        ({"timesteps": [3, 5]}, "timesteps must descend"),
        ({"num_inference_steps": 5, "timestep_spacing": "even"}, "timestep_spacing='even' is not known"),
    ]:
        with pytest.raises(ValueError, match=message):
            ours.set_timesteps(**arguments)


def test_eta_out_of_range_is_refused() -> None:
    """diffusers takes the root of a negative number: NaN."""
    theirs, ours = diffusers.DDIMScheduler(), ddpm_hf.DDIMScheduler()
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    assert theirs.step(NOISE, 900, ZEROS, eta=5.0).prev_sample.isnan().all()
    with pytest.raises(ValueError, match=r"eta=5.0 is outside 0 \(DDIM\) .. 1 \(DDPM\)"):
        ours.step(NOISE, 900, ZEROS, eta=5.0)


@BOTH
def test_betas_of_another_length_are_refused(name: str) -> None:
    """diffusers visits times that its table does not have."""
    ours = getattr(ddpm_hf, name)(trained_betas=[0.1, 0.3])
    with pytest.raises(ValueError, match="trained_betas has 2 entries but num_train_timesteps is 1000"):
        ours.set_timesteps(10)


def test_fixed_large_on_a_short_grid_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = ddpm_hf.DDPMScheduler(variance_type="fixed_large")
    with caplog.at_level(logging.WARNING):
        scheduler.set_timesteps(1000)
        assert caplog.messages == []
        scheduler.set_timesteps(100)
    assert "variance_type='fixed_large' is only right at all 1000 steps and far too noisy at 100" in caplog.text
