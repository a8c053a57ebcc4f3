"""The UNet of Ho et al. 2020 under diffusers' config and parameter names.

Imports nothing of this package. Start with unet_2d.py, then unet_2d_blocks.py.
"""
