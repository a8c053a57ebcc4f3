"""Images from seeds: the same in any batch and on any number of processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.randomness import generators_of
from ddpm_hf.sampling.denoising import SamplingOptions, denoise, sample_images

ROOT = Path(__file__).parents[2]


def make_unet(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        dropout=0.5,  # sampling must switch it off
        **options,
    )


def with_grid(scheduler: Any, steps: int = 6) -> Any:
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_an_image_depends_on_its_seed_and_not_on_its_batch(scheduler: Any) -> None:
    unet = make_unet()
    images = sample_images(unet, with_grid(scheduler()), range(100, 110), SamplingOptions(batch_size=10))
    assert images.dtype == torch.uint8
    assert images.shape == (10, 3, 8, 8)
    for batch_size in (1, 3, 7, 64):
        other = sample_images(unet, with_grid(scheduler()), range(100, 110), SamplingOptions(batch_size=batch_size))
        assert (images.int() - other.int()).abs().max() <= 1  # one grey level: sums in another order
    later = sample_images(unet, with_grid(scheduler()), range(106, 110), SamplingOptions(batch_size=4))
    assert (images[6:].int() - later.int()).abs().max() <= 1
    assert unet.training, "sampling leaves the network as it was"


def test_the_pipeline_draws_the_same_images() -> None:
    unet = make_unet().eval()
    pipe = DDPMCustomPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = sample_images(unet, with_grid(DDIMScheduler()), range(3, 8), SamplingOptions(eta=0.5, batch_size=5))
    assert torch.equal(images, pipe(seeds=range(3, 8), num_inference_steps=6, eta=0.5, output_type="uint8").images)


def test_noise_is_bitwise_that_of_the_seed() -> None:
    first, second = ([torch.randn(2, 2, generator=g) for g in generators_of(seeds)] for seeds in ([4, 5], [5, 6]))
    assert torch.equal(first[1], second[0])
    assert not torch.equal(first[0], first[1])


def test_class_labels_go_with_their_images() -> None:
    unet = make_unet(num_class_embeds=4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    images, other = (
        sample_images(
            unet,
            with_grid(DDIMScheduler()),
            range(5),
            SamplingOptions(guidance_scale=2.0, batch_size=batch_size),
            class_labels=labels,
        )
        for batch_size in (5, 2)
    )
    assert (images.int() - other.int()).abs().max() <= 1


def test_guidance_goes_for_the_image_and_leaves_the_variance_of_the_class() -> None:
    asked: list[torch.Tensor] = []

    class Network:
        config = SimpleNamespace(num_class_embeds=4)

        def __call__(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> Any:
            output = labels.float().view(-1, 1, 1, 1).expand(-1, 2, 2, 2)  # the label, as prediction and as variance
            return SimpleNamespace(sample=output)

    class Scheduler(diffusers.DDPMScheduler):  # type: ignore[misc]  # diffusers is untyped
        def step(self, model_output: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> Any:
            asked.append(model_output)
            return SimpleNamespace(prev_sample=x)

    x = torch.zeros(2, 1, 2, 2)
    denoise(
        Network(), with_grid(Scheduler(), 1), x, SamplingOptions(guidance_scale=3.0), class_labels=torch.tensor([0, 2])
    )
    (output,) = asked
    assert output[:, 0, 0, 0].tolist() == [3 + 3 * (0 - 3), 3 + 3 * (2 - 3)]
    assert output[:, 1, 0, 0].tolist() == [0, 2]


def test_guided_steps_take_the_noise_that_goes_with_the_clipped_image() -> None:
    unet, labels = make_unet(num_class_embeds=4).eval(), torch.tensor([0, 1])
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def drawn(scale: float, use_clipped_model_output: bool | None = None) -> torch.Tensor:
        options = SamplingOptions(guidance_scale=scale, use_clipped_model_output=use_clipped_model_output)
        return denoise(unet, with_grid(DDIMScheduler()), noise, options, class_labels=labels)

    assert torch.equal(drawn(3.0), drawn(3.0, use_clipped_model_output=True))
    assert not torch.equal(drawn(3.0), drawn(3.0, use_clipped_model_output=False))
    assert torch.equal(drawn(1.0), drawn(1.0, use_clipped_model_output=False))


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    """To the bit, as they cut the images into the same batches; 7 images in batches of 2 leave an odd one over."""
    script = ROOT / "tests" / "scripts" / "draw.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run(
            [*command, str(script), str(tmp_path / f"{processes}")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1_0.pt", "2_0.pt", "2_1.pt"))
    assert torch.equal(one, first)
    assert torch.equal(first, second)
