"""The same process, losses and schedulers on points of the plane. Start with points.py, a whole diffusion model."""
