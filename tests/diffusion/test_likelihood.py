"""Bits per dimension: closed forms on Gaussian data, and the same figure whatever the batch and the processes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import EulerDiscreteScheduler
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.diffusion.likelihood import bound_estimate, bound_terms
from ddpm_hf.diffusion.noise_schedules import make_betas
from ddpm_hf.diffusion.process import GaussianDiffusion
from ddpm_hf.diffusion.variational import bound_term
from ddpm_hf.metrics.bits_per_dim import Likelihood, bits_per_dim
from ddpm_hf.metrics.figures import save_bound
from ddpm_hf.pixels import PixelFormat
from tests.diffusion.gaussian import MEAN, SIGMA, gaussian_model, streams
from tests.runs import start_processes_of


def levels_and_bits(number: int, levels: int = 256) -> tuple[Tensor, Tensor]:
    """Images from N(MEAN, SIGMA^2) on some levels, and the bits/dim of their bins under it."""
    values = MEAN + SIGMA * torch.from_numpy(np.random.default_rng(0).standard_normal((number, 1, 8, 8)))
    half, last = (levels - 1) / 2, levels - 1
    level = ((values + 1) * half).round().clamp(0, last)
    x_0 = level / half - 1
    law = stats.norm(MEAN, SIGMA)
    high, low = np.where(level == last, np.inf, x_0 + 1 / last), np.where(level == 0, -np.inf, x_0 - 1 / last)
    return x_0, torch.from_numpy(-np.log2(law.cdf(high) - law.cdf(low))).flatten(1).mean(dim=1)


@pytest.mark.parametrize("levels", [256, 65536])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_the_bound_is_tight_on_gaussian_data_with_the_exact_score(beta_schedule: str, levels: int) -> None:
    model = replace(gaussian_model(GaussianDiffusion(make_betas(beta_schedule, 300))), half_bin=(1 / (levels - 1),))
    x_0, bits = levels_and_bits(100, levels)
    terms = bound_terms(model, x_0, streams(100))
    assert terms.shape == (100, 301)
    excess = terms.sum(dim=1) - bits
    error = float(excess.std()) / 10
    assert error < 0.03
    assert abs(float(excess.mean())) < 3 * error
    estimates = bound_estimate(model, x_0, streams(100), timesteps_per_image=8) - bits
    assert abs(float(estimates.mean())) < 3 * float(estimates.std()) / 10


def test_the_estimates_mean_is_the_bound() -> None:
    """Of one image, over many draws of times and noise."""
    model = gaussian_model(GaussianDiffusion(make_betas("linear", 20, 1e-3, 0.3)))
    x_0 = levels_and_bits(1)[0].expand(2000, -1, -1, -1)
    terms = bound_terms(model, x_0, streams(2000)).sum(dim=1)
    for few in (1, 3):
        estimates = bound_estimate(model, x_0, streams(2000), timesteps_per_image=few)
        error = math.sqrt(float(terms.var() + estimates.var()) / 2000)
        assert error < 0.1
        assert abs(float(estimates.mean() - terms.mean())) < 3 * error


def make_pipe(**options: Any) -> DDPMCustomPipeline:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "dropout": 0.5}
    scheduler = {"num_train_timesteps": 12, "beta_schedule": "squaredcos_cap_v2"}
    unet = UNet2DModel(**{**blocks, **sizes, "norm_num_groups": 4, **options})
    variance_type = "fixed_small" if unet.config.out_channels == 1 else "learned_range"
    return DDPMCustomPipeline(unet, DDPMScheduler(**scheduler, variance_type=variance_type))


IMAGES = torch.randint(256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("method", ["bound", "estimate", "ode"])
@pytest.mark.parametrize("out_channels", [1, 2])
def test_an_untrained_network_gives_finite_bits_that_do_not_depend_on_the_batch(method: str, out_channels: int) -> None:
    pipe = make_pipe(out_channels=out_channels)
    likelihood = Likelihood(method, timesteps_per_image=3, num_steps=5)
    whole = bits_per_dim(pipe, IMAGES, likelihood)
    assert whole.values.shape == (7,)
    assert whole.values.isfinite().all()
    assert whole.values.min() > 0
    assert pipe.unet.training, "measuring leaves the network as it was"
    for batch_size in (1, 3):
        other = bits_per_dim(pipe, IMAGES, likelihood, batch_size=batch_size)
        torch.testing.assert_close(other.values, whole.values, rtol=1e-4, atol=0)
    assert whole.evaluations == {"bound": 12, "estimate": 4, "ode": 9}[method]
    again = bits_per_dim(pipe, IMAGES[:3], likelihood)
    torch.testing.assert_close(again.values, whole.values[:3], rtol=1e-4, atol=0)
    assert not torch.equal(bits_per_dim(pipe, IMAGES, replace(likelihood, seed=1)).values, whole.values)
    assert whole.mean == pytest.approx(float(whole.values.mean()))
    assert whole.standard_error == pytest.approx(float(whole.values.std()) / math.sqrt(7))


def test_16_bits_need_eight_more_bits_than_8() -> None:
    """For the same images on levels 257 times as fine, each method's own way."""
    pipe, sharp = make_pipe(), make_pipe()
    for one in (pipe, sharp):  # whose density is smooth
        for parameter in one.unet.conv_out.parameters():
            nn.init.zeros_(parameter)
    sharp.format = PixelFormat.whole("uint16")
    deep = (IMAGES.int() * 257).to(torch.uint16)
    likelihood = Likelihood("ode", num_steps=5)
    found, expected = bits_per_dim(sharp, deep, likelihood).values, bits_per_dim(pipe, IMAGES, likelihood).values
    # The noise of dequantisation, which is smaller by as much, moves the density a little.
    torch.testing.assert_close(found, expected + math.log2(257), rtol=0, atol=0.1)
    eight, sixteen = bits_per_dim(pipe, IMAGES).terms, bits_per_dim(sharp, deep).terms
    assert eight is not None
    assert sixteen is not None
    torch.testing.assert_close(sixteen[:, 1:], eight[:, 1:], rtol=1e-5, atol=1e-6)
    assert (sixteen[:, 0] > eight[:, 0] + 4).all()


def test_each_channel_has_bins_of_its_own_range() -> None:
    """Two channels of different ranges need the mean of what each needs alone."""
    x_0, _ = levels_and_bits(3)
    model = gaussian_model(GaussianDiffusion(make_betas("linear", 20, 1e-3, 0.3)))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.zeros(3, dtype=torch.int64)
    x_t = model.diffusion.q_sample(x_0, t, noise)

    def term(channels: int, *half_bin: float) -> Tensor:
        wide = x_0.expand(-1, channels, -1, -1), x_t.expand(-1, channels, -1, -1)
        return bound_term(replace(model, half_bin=half_bin), model.output(wide[1], t), *wide, t)

    alone = term(1, 1 / 255), term(1, 1 / 65535)
    assert (alone[1] > alone[0] + 5).all()
    torch.testing.assert_close(term(2, 1 / 255, 1 / 65535), (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(term(2, 1 / 255), alone[0])


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        (PixelFormat("float32", (0.0,), (1.0,)), "the images are float32, and bits are defined for whole numbers"),
        (PixelFormat("uint16", (0.5,), (100.0,)), "begins and ends at whole numbers"),
        (PixelFormat.whole("uint16"), r"those of uint16 images, .* these are \(7, 1, 8, 8\) of uint8"),
    ],
)
def test_bits_of_what_has_none_are_one_sentence(format: PixelFormat, sentence: str) -> None:
    pipe = make_pipe()
    pipe.format = format
    with pytest.raises(ValueError, match=sentence):
        bits_per_dim(pipe, IMAGES)


def test_the_terms_of_the_bound_add_up() -> None:
    result = bits_per_dim(make_pipe(), IMAGES)
    assert result.terms is not None
    assert result.terms.shape == (7, 13)
    torch.testing.assert_close(result.terms.sum(dim=1), result.values)
    assert bits_per_dim(make_pipe(), IMAGES, Likelihood("estimate")).terms is None


def test_a_network_of_whole_times_needs_a_grid() -> None:
    pipe = make_pipe(time_embedding_type="learned", num_train_timesteps=12)
    with pytest.raises(ValueError, match=r"knows whole ones only; give num_steps \(--ode_steps\)"):
        bits_per_dim(pipe, IMAGES, Likelihood("ode"))
    assert bits_per_dim(pipe, IMAGES, Likelihood("ode", num_steps=3)).evaluations == 5


def test_finer_tolerances_cost_more() -> None:
    loose, tight = (bits_per_dim(make_pipe(), IMAGES, Likelihood("ode", rtol=x, atol=x)) for x in (1e-1, 1e-3))
    assert 10 < loose.evaluations < tight.evaluations


def test_clipping_is_the_schedulers_own() -> None:
    pipe = make_pipe()
    clipped = bits_per_dim(pipe, IMAGES).mean
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    assert clipped < bits_per_dim(pipe, IMAGES).mean


def test_a_ddim_scheduler_remembers_the_variance_that_was_learned() -> None:
    pipe = make_pipe(out_channels=2)
    with_ddpm = bits_per_dim(pipe, IMAGES).values
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(bits_per_dim(pipe, IMAGES).values, with_ddpm)


def test_classes_go_with_their_images() -> None:
    pipe = make_pipe(num_class_embeds=7)
    labels = torch.arange(7)
    whole = bits_per_dim(pipe, IMAGES, class_labels=labels)
    cut = bits_per_dim(pipe, IMAGES, class_labels=labels, batch_size=2)
    torch.testing.assert_close(cut.values, whole.values, rtol=1e-4, atol=0)
    assert not torch.equal(bits_per_dim(pipe, IMAGES, class_labels=labels.flip(0)).values, whole.values)
    with pytest.raises(ValueError, match="class-conditional; give class_labels"):
        bits_per_dim(pipe, IMAGES)


def measure(folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    for method in ("bound", "estimate", "ode"):
        result = bits_per_dim(
            make_pipe(), IMAGES, Likelihood(method, num_steps=5), accelerator=accelerator, batch_size=2
        )
        torch.save(result.values, f"{folder}/{method}_{accelerator.num_processes}_{accelerator.process_index}.pt")


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    for processes in (1, 2):
        start_processes_of(processes, measure, str(tmp_path))
    for method in ("bound", "estimate", "ode"):
        one, first, second = (
            torch.load(tmp_path / f"{method}_{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1")
        )
        assert torch.equal(one, first)
        assert torch.equal(first, second)


def test_bad_input() -> None:
    pipe = make_pipe()
    with pytest.raises(ValueError, match="method='elbo' is not known; use one of bound, estimate, ode"):
        Likelihood("elbo")
    with pytest.raises(ValueError, match=r"uint8 images, \(N, C, H, W\), N >= 1; these are \(7, 1, 8, 8\) of float32"):
        bits_per_dim(pipe, IMAGES.float())
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="of ddpm_hf, and this pipeline has a EulerDiscreteScheduler"):
        bits_per_dim(DDPMCustomPipeline(pipe.unet, euler), IMAGES)
    with pytest.raises(ValueError, match="timesteps_per_image=0 must be at least 1"):
        Likelihood("estimate", timesteps_per_image=0)
    for rtol in (0.0, 1e-11, 0.2, math.nan):
        with pytest.raises(ValueError, match=f"rtol={rtol} must be from 1e-10 to 0.1"):
            Likelihood("ode", rtol=rtol)


def test_the_plot_of_the_terms_is_a_picture(tmp_path: Path) -> None:
    save_bound(tmp_path / "plots" / "bound.png", torch.rand(3, 13) + 0.1)
    with Image.open(tmp_path / "plots" / "bound.png") as picture:
        assert picture.size == (720, 480)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["bound.png"]
