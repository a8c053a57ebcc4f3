from ddpm_hf.schedulers import DDIMScheduler, DDPMScheduler

__version__ = "0.1.0"
