"""Runs that are struck by signals at random moments and at chosen instructions, and must end bitwise as unbroken ones.

python -m tests.chaos --minutes 60 --seed 0
"""
