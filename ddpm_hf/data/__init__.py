"""Pictures anywhere to uint8 images, in memory maps or streams, and the batch of a given step.

Imports `diffusion` (for the choice of timesteps), `files`, `images`, `randomness` and `settings`. Start with
sources.py, which finds a data set; decoding.py turns its rows into pixels, image_cache.py keeps those, streaming.py
reads them anew in each run, and batches.py cuts the batch of a step.
"""
