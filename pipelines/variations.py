"""Variations of an image: noise it part of the way and denoise it again (SDEdit, Meng et al. 2022, arXiv 2108.01073).

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "google/ddpm-cifar10-32", custom_pipeline="pipelines/variations.py", trust_remote_code=True
    )
    near = pipe(images, strength=0.3).images  # images: (B, C, H, W) in [-1, 1]
    far = pipe(images, strength=0.7, seed=1).images

What survives the noise stays: at a low strength all but details, at a high one the layout and colours, at 1 nothing.
"""

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

import ddpm_hf


class VariationsPipeline(ddpm_hf.DDPMCustomPipeline):
    """Adds noise up to one of DDIM's timesteps and denoises from there, whatever scheduler the model came with."""

    def __init__(self, unet, scheduler):  # type: ignore[no-untyped-def]  # the loader wants these two names only
        super().__init__(unet, ddpm_hf.DDIMScheduler.from_config(scheduler.config))

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        strength: float = 0.5,
        seed: int = 0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Draw a variation of each image.

        Args:
            images: (B, C, H, W) in [-1, 1].
            strength: the share of the grid that is gone through, from 0 (the images themselves) to 1.
            seed: image i is varied by the noise of seed + i.
            num_inference_steps: S, steps of the whole grid.
            eta: 0 (DDIM) .. 1 (DDPM's noise).
            output_type: `pil`, or `pt` (B, C, H, W) in [0, 1].

        Raises:
            ValueError: for a strength outside 0 .. 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} is outside 0 (the images themselves) .. 1 (other images).")
        x = images.to(self._execution_device, self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        grid = self.scheduler.timesteps.tolist()
        left = grid[len(grid) - round(strength * len(grid)) :]
        if left:
            generator = ddpm_hf.randomness.generators_of(range(seed, seed + len(x)))
            noise = torch.cat([torch.randn(1, *x.shape[1:], generator=g) for g in generator]).to(x)
            x = self.scheduler.diffusion.q_sample(x, left[0], noise)
            self.scheduler.set_timesteps(timesteps=left)
            options = ddpm_hf.sampling.denoising.SamplingOptions(eta)
            x = self.denoise(x, options, generator=generator)
        pixels = ddpm_hf.images.to_unit_range(x) if output_type == "pt" else ddpm_hf.images.to_uint8(x)
        return ImagePipelineOutput(images=pixels if output_type == "pt" else ddpm_hf.images.to_pil(pixels))
