"""Tries the extensions of docs/extending.md, in a copy of the package that has them. Prints {patch: error or null}.

It is run by tests/test_extending.py, with the folder of the copy as the working directory and on the PYTHONPATH.
"""

import contextlib
import json
import sys
import traceback
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import Tensor

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, GaussianDiffusion
from ddpm_hf.diffusion.denoiser import denoiser_class
from ddpm_hf.metrics.table import METRICS
from ddpm_hf.sampling.samplers import make_scheduler
from ddpm_hf.training.choices import OPTIMIZERS
from ddpm_hf.training.optimization import OptimizerOptions

RUN = "--output_dir run --training.steps 2 --training.batch_size 16 --training.sample_every null --threads 1 --quiet"
NETWORK = "--model.block_out_channels [8,8] --model.norm_num_groups 4"
DRAWING = "--evaluation.num_images 4 --evaluation.num_inference_steps 2 --evaluation.timestep_spacing trailing"
CHOICES = "--diffusion.prediction_type edm --training.loss_weighting none --training.timestep_sampling log_normal"
MEAN, STD = 0.2, 0.5


def flow_error(scheduler: DDIMScheduler, steps: int, evaluations: int) -> float:
    """How far points are, at time 99, from where the probability flow of a Gaussian takes them."""
    diffusion = scheduler.diffusion
    scheduler.set_timesteps(timesteps=[*range(999, 98, -900 // steps)])

    def moments(t: int) -> tuple[Tensor, Tensor]:
        alpha_bar = diffusion.alpha_bar(t)
        return alpha_bar.sqrt() * MEAN, (alpha_bar * STD**2 + 1 - alpha_bar).sqrt()

    x_t = start = torch.linspace(-3, 3, 101, dtype=torch.float64)[:, None]
    for t in scheduler.timesteps.tolist()[: evaluations * steps]:
        mean, std = moments(t)
        noise = (1 - diffusion.alpha_bar(t)).sqrt() * (x_t - mean) / std**2  # E[noise | x_t]
        x_t = scheduler.step(noise, t, x_t).prev_sample
    (first_mean, first_std), (last_mean, last_std) = moments(999), moments(99)
    return float((x_t - (last_mean + last_std / first_std * (start - first_mean))).abs().max())


def sampler() -> None:
    """Heun's error falls by 4 where the steps double, and DDIM's by 2."""
    config = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False).config
    for name, evaluations in (("heun_angle", 2), ("ddim", 1)):
        scheduler = make_scheduler(config, name)
        ratio = flow_error(scheduler, 30, evaluations) / flow_error(scheduler, 60, evaluations)
        assert abs(ratio / 2**evaluations - 1) < 0.15, (name, ratio)


def metric() -> None:
    """k equally large groups of equal images, in orthogonal directions, count as k."""
    for k in (1, 2, 5):
        vendi = METRICS["vendi"].load()()
        vendi.update(3 * torch.eye(8)[torch.arange(20) % k], real=False)
        torch.testing.assert_close(vendi.compute()["vendi"], torch.tensor(float(k), dtype=torch.float64))


def preconditioning() -> None:
    """`predict` inverts `target`, and a network that says 0 means the best linear guess of x_0."""
    diffusion = GaussianDiffusion(DDPMScheduler().betas.double())
    denoiser = denoiser_class("edm")(diffusion, "edm")
    x_0, noise = torch.randn(2, 6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 10, 100, 500, 999])
    x_t = diffusion.q_sample(x_0, t, noise)
    found_x_0, found_noise = denoiser.predict(denoiser.target(x_0, noise, t), x_t, t)
    torch.testing.assert_close(found_x_0, x_0)
    torch.testing.assert_close(found_noise, noise)
    alpha_bar = diffusion.alpha_bar(t).view(-1, 1, 1, 1)
    guess, _ = denoiser.predict(torch.zeros_like(x_t), x_t, t)
    torch.testing.assert_close(guess, alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar) * x_t)


def optimizer() -> None:
    """The first step goes by the learning rate against the gradient's sign; then the momentum counts too."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    lion = resolve_name(OPTIMIZERS["lion"])([weight], OptimizerOptions(0.1, (0.9, 0.99), 0.0))
    for gradient, expected in (([2.0, -5.0, 0.1], [0.9, -1.9, 2.9]), ([-0.1, 50.0, 0.1], [0.8, -2.0, 2.8])):
        weight.grad = torch.tensor(gradient)
        lion.step()
        torch.testing.assert_close(weight.detach(), torch.tensor(expected))


def data_source() -> None:
    """A run of two steps on the discs, which also takes the preconditioning and the optimizer."""
    import train_discs

    whole, labels = train_discs.Discs().batch(3, 8, 0, 8, seed=1)
    part, _ = train_discs.Discs().batch(3, 8, 2, 5, seed=1)
    assert torch.equal(part, whole[2:5])
    assert whole.amax() > 200
    assert labels.amax() < 3
    sys.argv[1:] = f"{RUN} {NETWORK} {DRAWING} {CHOICES} --training.optimizer lion --evaluation.extractor null".split()
    sys.argv += ["--evaluation.held_out_split", "null", "--evaluation.sampler", "heun_angle", "--evaluation.eta", "0"]
    train_discs.main()
    assert Path("run/checkpoints/step-2").is_dir()
    pipe = DDPMCustomPipeline.from_pretrained("run")
    assert pipe.scheduler.config.prediction_type == "edm"


results = {}
with contextlib.redirect_stdout(sys.stderr):
    for check in (sampler, metric, preconditioning, optimizer, data_source):
        try:
            check()
            results[check.__name__] = None
        except BaseException:
            results[check.__name__] = traceback.format_exc()
print(json.dumps(results))
