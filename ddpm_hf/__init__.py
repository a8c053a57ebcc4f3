"""DDPM (Ho et al. 2020) and DDIM (Song et al. 2021) for the Hugging Face stack."""

from ddpm_hf.diffusion import GaussianDiffusion
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.schedulers import DDIMScheduler, DDPMScheduler
from ddpm_hf.unet import UNet2DModel

__version__ = "0.1.0"

__all__ = ["DDIMScheduler", "DDPMCustomPipeline", "DDPMScheduler", "GaussianDiffusion", "UNet2DModel", "__version__"]
