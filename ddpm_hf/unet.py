"""The place where folders of models on patches, saved by earlier versions, name their network."""

from diffusers import ModelMixin

from ddpm_hf.models.unet_2d import UNet2DModel

__all__ = ["ModelMixin", "UNet2DModel"]  # diffusers' loader looks for both in the module that a folder names
