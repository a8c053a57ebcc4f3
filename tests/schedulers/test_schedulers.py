"""The samplers' law on Gaussian data, and their life as diffusers schedulers: configs, files, exchange."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ddpm_hf.diffusion.choices import NOISE_SCHEDULES
from ddpm_hf.schedulers.adams import AdamsScheduler
from ddpm_hf.schedulers.ddim import DDIMScheduler
from ddpm_hf.schedulers.ddpm import DDPMScheduler

IN_DIFFUSERS: dict[Any, str] = {
    DDPMScheduler: "DDPMScheduler",
    DDIMScheduler: "DDIMScheduler",
    AdamsScheduler: "DDIMScheduler",
}
CLASSES = pytest.mark.parametrize("cls", IN_DIFFUSERS)

MEAN, STD, WALKERS = 0.3, 0.5, 40_000
GRIDS: list[dict[str, Any]] = [
    {"num_inference_steps": 1000},
    {"num_inference_steps": 10},
    {"num_inference_steps": 37, "timestep_spacing": "linspace"},
    {"num_inference_steps": 61, "timestep_spacing": "trailing"},
    {"num_inference_steps": 50, "timestep_spacing": "quadratic"},
    {"timesteps": [999, 700, 650, 90, 2]},
]


def exact_noise(x_t: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """E[noise | x_t] for data N(MEAN, STD^2): what a perfect network says."""
    residual = x_t - alpha_bar**0.5 * MEAN
    return (1 - alpha_bar) ** 0.5 * residual / (alpha_bar * STD**2 + 1 - alpha_bar)


def walk(scheduler: Any, grid: dict[str, Any], **options: Any) -> torch.Tensor:
    """Walkers from N(0, 1) to x_0."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(**grid)
    x = torch.randn(WALKERS, 1, dtype=torch.float64, generator=generator)
    for t in scheduler.timesteps.tolist():
        noise = exact_noise(x, scheduler.diffusion.alpha_bar(t).item())
        x = scheduler.step(noise, t, x, generator=generator, **options).prev_sample
    return x


def law(timesteps: list[int], alphas_cumprod: np.ndarray[Any, Any], eta: float) -> tuple[float, float]:
    """The mean and variance that x_0 must have, in closed form: every step is x_s = slope x_t + shift + sigma z.

    Slope and shift come from Song et al.'s equation 12, in terms of the noise.
    """
    mean, variance = 0.0, 1.0
    for t, s in zip(timesteps, [*timesteps[1:], -1], strict=True):
        a_t, a_s = alphas_cumprod[t], alphas_cumprod[s] if s >= 0 else 1.0
        sigma = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
        noise_slope = np.sqrt(1 - a_t) / (a_t * STD**2 + 1 - a_t)
        noise_shift = -noise_slope * np.sqrt(a_t) * MEAN
        per_noise = np.sqrt(1 - a_s - sigma**2) - np.sqrt(a_s / a_t) * np.sqrt(1 - a_t)
        slope = np.sqrt(a_s / a_t) + per_noise * noise_slope
        mean = slope * mean + per_noise * noise_shift
        variance = slope**2 * variance + sigma**2
    return mean, variance


def assert_law(x: torch.Tensor, mean: float, variance: float) -> None:
    """Within five standard errors."""
    assert x.mean().item() == pytest.approx(mean, abs=5 * (variance / WALKERS) ** 0.5)
    assert x.var().item() == pytest.approx(variance, rel=5 * (2 / WALKERS) ** 0.5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_walks_by_the_law(grid: dict[str, Any], eta: float) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    x = walk(scheduler, grid, eta=eta)
    assert_law(x, *law(scheduler.timesteps.tolist(), scheduler.diffusion.alphas_cumprod.numpy(), eta))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ddpm_walks_by_the_law(grid: dict[str, Any]) -> None:
    scheduler = DDPMScheduler(clip_sample=False)
    x = walk(scheduler, grid)
    assert_law(x, *law(scheduler.timesteps.tolist(), scheduler.diffusion.alphas_cumprod.numpy(), eta=1.0))


def test_all_steps_give_the_data_back() -> None:
    """At the full grid the law is the data's own, to the error of a thousand finite steps."""
    for scheduler, options in [
        (DDPMScheduler(clip_sample=False), {}),
        (DDIMScheduler(clip_sample=False), {"eta": 0.0}),
    ]:
        x = walk(scheduler, {"num_inference_steps": 1000}, **options)
        assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
        assert x.std().item() == pytest.approx(STD, rel=0.01)


@CLASSES
@pytest.mark.parametrize("beta_schedule", NOISE_SCHEDULES)
def test_every_diffusers_scheduler_is_built_from_ours(cls: Any, beta_schedule: str) -> None:
    """With the same betas, also where diffusers does not know the schedule; and ours from its config again."""
    chosen = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
    ours = cls(beta_schedule=beta_schedule, **chosen)
    assert len(ours.compatibles) >= 15
    for theirs_class in ours.compatibles:
        if theirs_class.__name__ in ("EDMEulerScheduler", "DPMSolverSDEScheduler"):
            continue  # the first has noise levels of its own and no betas, the second needs a library that we do not
        theirs = theirs_class.from_config(ours.config)
        torch.testing.assert_close(theirs.alphas_cumprod, ours.alphas_cumprod, rtol=1e-5, atol=1e-6)
        again = cls.from_config(theirs.config)
        assert chosen.items() <= again.config.items()
        assert again.config.beta_schedule == beta_schedule
        assert torch.equal(again.betas, ours.betas)


@CLASSES
def test_quadratic_is_silent_and_readable_elsewhere(cls: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = cls(timestep_spacing="quadratic")
    ours.save_pretrained(tmp_path)
    theirs = getattr(diffusers, IN_DIFFUSERS[cls]).from_pretrained(tmp_path)
    theirs.set_timesteps(10)
    assert theirs.config.timestep_spacing == "leading"
    through_another = cls.from_config(diffusers.DPMSolverMultistepScheduler.from_config(ours.config).config)
    for scheduler in (ours, cls.from_pretrained(tmp_path), through_another):
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[:2].tolist() == [800, 632]
    changed = cls.from_config(ours.config, timestep_spacing="trailing")
    changed.set_timesteps(10)
    assert changed.timesteps[0] == 999
    assert caplog.messages == []


def test_even_angles_are_trailing_elsewhere(tmp_path: Path) -> None:
    DDIMScheduler(timestep_spacing="angle").save_pretrained(tmp_path)
    assert diffusers.DDIMScheduler.from_pretrained(tmp_path).config.timestep_spacing == "trailing"
    ours = DDIMScheduler.from_pretrained(tmp_path)
    ours.set_timesteps(5)
    assert ours.timesteps.tolist() == [999, 476, 319, 200, 95]


@CLASSES
def test_a_schedule_chosen_later_wins(cls: Any) -> None:
    """The betas that stand in the config for other libraries' sake do not outlive the schedule that they came from."""
    jsd = cls(beta_schedule="jsd")
    assert torch.equal(cls.from_config(jsd.config, beta_schedule="linear").betas, cls().betas)
    shorter = cls.from_config(jsd.config, num_train_timesteps=50)
    assert torch.equal(shorter.betas, cls(beta_schedule="jsd", num_train_timesteps=50).betas)
    given = cls(trained_betas=np.array([0.1, 0.2]), num_train_timesteps=2)
    assert cls.from_config(given.config).betas.tolist() == given.betas.tolist()


@CLASSES
def test_files_are_read_in_silence_where_we_are_not_installed(cls: Any, tmp_path: Path) -> None:
    scheduler = cls(beta_schedule="jsd", timestep_spacing="quadratic")
    scheduler.save_pretrained(tmp_path)
    script = (
        "import sys; sys.modules['ddpm_hf'] = None\n"
        "import diffusers\n"
        f"s = diffusers.{IN_DIFFUSERS[cls]}.from_pretrained({str(tmp_path)!r})\n"
        "s.set_timesteps(10); print(s.alphas_cumprod.double().sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(scheduler.diffusion.alphas_cumprod.sum().item(), rel=1e-5)
    assert done.stderr == ""
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == cls.__name__


@CLASSES
def test_loaded_is_saved(cls: Any, tmp_path: Path) -> None:
    scheduler = cls(beta_schedule="sigmoid", steps_offset=1, clip_sample_range=2.0)
    scheduler.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    loaded_config = {k: v for k, v in loaded.config.items() if not k.startswith("_")}
    assert loaded_config == {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert torch.equal(loaded.betas, scheduler.betas)


@CLASSES
def test_what_is_no_image_is_refused(cls: Any) -> None:
    scheduler = cls()
    scheduler.set_timesteps(2)
    image = torch.zeros(1, 3, 8, 8)
    for output, sample in ((None, image), (image, None), (image, torch.zeros(3))):
        with pytest.raises(ValueError, match=r"must be a tensor of images, \(B, C, ...\), and is a"):
            scheduler.step(output, 500, sample)
    with pytest.raises(ValueError, match=r"is of shape \(1, 3, 4, 4\) and the sample of \(1, 3, 8, 8\)"):
        scheduler.step(torch.zeros(1, 3, 4, 4), 500, image)
    with pytest.raises(ValueError, match=r"timesteps is float32 of shape \(1,\) and must be integers"):
        scheduler.add_noise(image, image, torch.tensor([1.5]))
    with pytest.raises(ValueError, match=r"timesteps is int64 of shape \(3,\) and must be integers"):
        scheduler.add_noise(image, image, [1, 2, 3])


@CLASSES
def test_timesteps_may_be_any_integer(cls: Any) -> None:
    scheduler = cls()
    scheduler.set_timesteps(10)
    x = torch.ones(1, 1, 2, 2)
    results = [
        scheduler.step(x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        for t in (500, np.int64(500), torch.tensor(500), torch.tensor([500]))
    ]
    assert all(torch.equal(result, results[0]) for result in results)


@CLASSES
def test_timesteps_set_by_hand_are_followed(cls: Any) -> None:
    scheduler = cls()
    scheduler.set_timesteps(10)
    scheduler.timesteps = torch.tensor([700, 30])
    assert scheduler.previous_timestep(700) == 30


def test_a_generator_per_image_gives_each_its_own_noise() -> None:
    scheduler = DDPMScheduler()
    x = torch.zeros(3, 1, 4, 4)
    together = scheduler.step(x, 500, x, generator=[torch.Generator().manual_seed(i) for i in range(3)]).prev_sample
    for i in range(3):
        alone = scheduler.step(x[:1], 500, x[:1], generator=torch.Generator().manual_seed(i)).prev_sample
        assert torch.equal(together[i : i + 1], alone)


@CLASSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(cls: Any, dtype: torch.dtype) -> None:
    scheduler = cls()
    scheduler.set_timesteps(10)
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = scheduler.step(x, 500, x)
    assert result.prev_sample.dtype == dtype
    assert result.pred_original_sample.dtype == dtype
    assert scheduler.step(x, 500, x, return_dict=False)[0].dtype == dtype


def test_bad_input() -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"has no timesteps yet; call set_timesteps"):
        DDIMScheduler().step(x, 10, x)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"either generator or variance_noise"):
        scheduler.step(x, 500, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ValueError, match=r"the model's output has 1 channels and the sample 3; they must be equal."):
        scheduler.step(x[:, :1], 500, x)
    for cls in (DDPMScheduler, DDIMScheduler):
        with pytest.raises(NotImplementedError, match=r"beta_schedule='nope' is not known; use one of linear"):
            cls(beta_schedule="nope")
        scheduler = cls(prediction_type="nope")
        scheduler.set_timesteps(10)
        with pytest.raises(ValueError, match=r"prediction_type='nope' is not known; use one of epsilon"):
            scheduler.step(x, 500, x)
