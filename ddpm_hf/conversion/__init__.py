"""Checkpoints and recipes of other projects into ours, and back.

Imports `pipeline` and what it stands on. Start with layouts.py, the tables of names.
"""
