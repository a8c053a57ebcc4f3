"""Commits that survive a failing Hub, cards, and what may leave this machine.

Start with repository.py.
"""
