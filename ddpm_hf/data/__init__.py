"""Pictures anywhere to uint8 images, in memory maps or streams, and the batch of a given step.

Imports `diffusion` (for the choice of timesteps), `files`, `images`, `randomness` and `settings`. Start with
sources.py. loading.py finds a data set, folders.py lists one of files, contents.py sees changed ones, columns.py picks
its images and labels, and decoding.py turns them into pixels; image_cache.py keeps those, streaming.py reads them anew
in each run, and batches.py cuts the batch of a step. sample_sets.py reads generated images in the same way.
"""
