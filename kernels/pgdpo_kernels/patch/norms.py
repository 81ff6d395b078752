"""A module's norm as the ops take it."""

from __future__ import annotations

from torch import nn


def affine(norm: nn.Module) -> dict:
    """The ops' keywords for a LayerNorm or an RMSNorm (torch's or diffusers') over the last dimension."""
    kind = "layer" if isinstance(norm, nn.LayerNorm) else "rms"
    return {"norm": kind, "weight": norm.weight, "bias": getattr(norm, "bias", None), "eps": norm.eps}
