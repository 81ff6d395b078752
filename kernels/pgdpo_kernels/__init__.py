"""Fused Triton ops for preference training of diffusion models. Depends on torch and triton alone."""
