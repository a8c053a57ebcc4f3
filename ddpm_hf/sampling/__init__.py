"""From noise to images: the reverse loop, image files, and pictures of the way.

Imports `diffusion`, `schedulers`, `files`, `images`, `launch` and `randomness`. Start with denoising.py.
"""
