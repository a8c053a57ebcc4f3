"""Pictures anywhere to uint8 images, in memory maps or streams, and the batch of a given step.

Imports `diffusion` (for the choice of timesteps), `files`, `images`, `randomness` and `settings`. Start with
sources.py. loading.py finds a data set, folders.py lists one of files, contents.py sees changed ones. members.py opens
files that hold many images: archives.py (with shards.py), arrays.py (with array_sets.py) and tiff_pages.py each know a
kind. image_tables.py makes splits and labels of what was found, columns.py picks the columns of images and labels, and
decoding.py turns these into pixels; image_cache.py keeps those, streaming.py reads them anew in each run, and
batches.py cuts the batch of a step. sample_sets.py reads generated images in the same way.
"""
