"""Draws seven images on however many processes it runs on; each process saves what it got."""

import sys

import torch
from accelerate import Accelerator

from ddpm_hf import DDIMScheduler
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from tests.sampling.test_denoising import make_unet, with_grid

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
scheduler = with_grid(DDIMScheduler())
options = SamplingOptions(eta=0.5, batch_size=2)
images = sample_images(make_unet(), scheduler, range(5, 12), options, accelerator=accelerator)
torch.save(images, f"{sys.argv[1]}_{accelerator.process_index}.pt")
accelerator.end_training()
