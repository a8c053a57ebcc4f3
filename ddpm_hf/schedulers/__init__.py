"""DDPM, DDIM and DDIM of second order behind diffusers' scheduler interface, with no formula of their own.

Imports `diffusion`. Start with ddpm.py; base.py has what both share.
"""
