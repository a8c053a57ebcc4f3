"""Inpainting with a model that was never trained for it: RePaint (Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865).

    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "google/ddpm-cifar10-32", custom_pipeline="pipelines/repaint.py", trust_remote_code=True
    )
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True  # what is to be painted
    painted = pipe(images, mask).images  # images: (B, C, H, W) in [-1, 1]

After every step the known pixels are put in, noised to that step's level. A step knows nothing of them, so its part may
not fit; going back up some steps and down again brings the two together (section 4.2), at the cost of more steps.
"""

from collections.abc import Iterator

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

import ddpm_hf
from ddpm_hf.sampling.denoising import network_of


class RePaintPipeline(ddpm_hf.DDPMCustomPipeline):
    """Inpaints the masked part with DDPM's noise, in any number of steps, whatever scheduler the model came with."""

    def __init__(self, unet, scheduler):  # type: ignore[no-untyped-def]  # the loader wants these two names only
        super().__init__(unet, ddpm_hf.DDIMScheduler.from_config(scheduler.config))

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        mask: Tensor,
        seed: int = 0,
        num_inference_steps: int = 100,
        jump_length: int = 10,
        num_resamplings: int = 10,
        output_type: str = "pil",
        class_labels: Tensor | None = None,
    ) -> ImagePipelineOutput:
        """Paint.

        Args:
            images: (B, C, H, W) in [-1, 1]; what they hold under the mask does not matter.
            mask: bool, of a shape that goes with that of the images, such as (H, W); True is painted.
            seed: image i is painted from seed + i.
            num_inference_steps: S, steps of the grid.
            jump_length: j, steps that each jump goes back up.
            num_resamplings: r, times that each stretch of j steps is gone down; 1 is none again.
            output_type: `pil`, or `pt` (B, C, H, W) in [0, 1].
            class_labels: int64 (B,), for a class-conditional model.
        """
        known = images.to(self._execution_device, self.unet.dtype)
        mask = mask.to(known.device)
        generator = ddpm_hf.randomness.generators_of(range(seed, seed + len(known)))
        diffusion = self.scheduler.diffusion
        denoiser = self.scheduler.denoiser.of(network_of(self.unet))
        self.scheduler.set_timesteps(num_inference_steps)
        ascending = [-1, *self.scheduler.timesteps.flip(0).tolist()]  # -1 is clean

        x = noise_like(known, generator)
        for here, there in self.progress_bar(list(walk(len(ascending) - 1, jump_length, num_resamplings))):
            t, s = ascending[here], ascending[there]
            if there > here:  # q(x_s | x_t), algorithm 1, line 10
                kept = diffusion.alpha_bar(s) / diffusion.alpha_bar(t)
                x = (kept.sqrt() * x + (1 - kept).sqrt() * noise_like(x, generator)).to(x.dtype)
                continue
            options = {"eta": 1.0, "use_clipped_model_output": True, "generator": generator}
            painted = self.scheduler.step(denoiser.output(x, t, class_labels), t, x, **options).prev_sample
            x = torch.where(mask, painted, diffusion.q_sample(known, s, noise_like(known, generator)))
        pixels = ddpm_hf.images.to_unit_range(x) if output_type == "pt" else ddpm_hf.images.to_uint8(x)
        return ImagePipelineOutput(images=pixels if output_type == "pt" else ddpm_hf.images.to_pil(pixels))


def walk(steps: int, jump_length: int, num_resamplings: int) -> Iterator[tuple[int, int]]:
    """Moves from `steps` to 0 by ones: at every `jump_length`-th place up again that far, so often (appendix B)."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), num_resamplings - 1)
    here = steps
    while here > 0:
        yield here, here - 1
        here -= 1
        if jumps.get(here, 0) > 0:
            jumps[here] -= 1
            for _ in range(jump_length):
                yield here, here + 1
                here += 1


def noise_like(x: Tensor, generator: list[torch.Generator]) -> Tensor:
    """One draw for each image, from its own generator."""
    return torch.cat([torch.randn(1, *x.shape[1:], generator=g) for g in generator]).to(x)
