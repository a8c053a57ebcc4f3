"""DDIM as an encoder: images to the noise that they come from, and walks between two of them (Song et al. 2021).

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "google/ddpm-cifar10-32", custom_pipeline="pipelines/ddim_interpolation.py", trust_remote_code=True
    )
    latents = pipe.encode(images, num_inference_steps=100)  # (B, C, H, W) in [-1, 1] -> noise of the same shape
    walk = pipe(latents[0], latents[1], num_images=8, num_inference_steps=100).images

Without noise (eta = 0) DDIM is a discretised differential equation, so it can be run both ways (section 4.3 and
figure 6). Encoding takes each step's noise for that of the step before, so more steps give images back more closely.
"""

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

import ddpm_hf
from ddpm_hf.sampling.denoising import network_of, slerp


class DDIMInterpolationPipeline(ddpm_hf.DDPMCustomPipeline):
    """Encodes, decodes and interpolates with DDIM, whatever scheduler the model came with."""

    def __init__(self, unet, scheduler):  # type: ignore[no-untyped-def]  # the loader wants these two names only
        super().__init__(unet, ddpm_hf.DDIMScheduler.from_config(scheduler.config, clip_sample=False))

    @torch.no_grad()
    def encode(self, images: Tensor, num_inference_steps: int = 100) -> Tensor:
        """The x_T of each image, (B, C, H, W) in [-1, 1], by S steps."""
        self.scheduler.set_timesteps(num_inference_steps)
        denoiser = self.scheduler.denoiser.of(network_of(self.unet))
        x = images.to(self._execution_device, self.unet.dtype)
        ascending = self.scheduler.timesteps.flip(0).tolist()
        # The network is asked at the time that x is at; clean images count as being at the first.
        for here, there in zip([ascending[0], *ascending[:-1]], ascending, strict=True):
            x_0, noise, _ = denoiser(x, here)
            x = denoiser.diffusion.q_sample(x_0, there, noise)
        return x

    @torch.no_grad()
    def decode(self, latents: Tensor, num_inference_steps: int = 100) -> Tensor:
        """The images of x_T, (B, C, H, W), by S steps: about [-1, 1]."""
        self.scheduler.set_timesteps(num_inference_steps)
        return self.denoise(latents)

    def __call__(
        self, start: Tensor, end: Tensor, num_images: int = 8, num_inference_steps: int = 100
    ) -> ImagePipelineOutput:
        """`num_images` PIL images on the way from one latent, (C, H, W), to another, both included."""
        shares = torch.linspace(0, 1, num_images)
        latents = torch.stack([slerp(start, end, share) for share in shares])
        images = ddpm_hf.images.to_uint8(self.decode(latents, num_inference_steps))
        return ImagePipelineOutput(images=ddpm_hf.images.to_pil(images))
