"""Pictures anywhere to uint8 images, in memory maps or streams, and the batch of a given step.

Imports `diffusion` (for the choice of timesteps), `images`, `randomness` and `settings`. Start with sources.py.
"""
