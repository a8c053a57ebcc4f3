"""All that the loop of train_accelerate.py calls: settings, the run and its folder, checkpoints, evaluation, log.

Imports every chapter but `conversion`, `toy` and `cli`. Start with settings.py, then run.py.
"""
