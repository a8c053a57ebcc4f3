"""From noise to images: the reverse loop, image files, and pictures of the way.

Imports `schedulers`, `images` and `randomness`. Start with denoising.py.
"""
