"""The mathematics: noise schedules, the process in closed form, losses, the variational bound, likelihoods.

No file, no process and no network class. Imports only `randomness`. Start with process.py.
"""
