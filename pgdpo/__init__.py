"""Preference optimisation for video diffusion models: Diffusion-DPO, PG-DPO and their family."""

__version__ = "0.1.0"
