"""Fused Triton ops for preference training of diffusion models. Depends on torch and triton alone."""

from .backend import get_backend, set_backend
from .diffusion_dpo import diffusion_dpo_loss
from .noise import noise_pair, pair_noise
from .pair_errors import pair_errors
from .preference import preference_loss
from .types import PairErrors, PreferenceLoss

__all__ = [
    "PairErrors",
    "PreferenceLoss",
    "diffusion_dpo_loss",
    "get_backend",
    "noise_pair",
    "pair_errors",
    "pair_noise",
    "preference_loss",
    "set_backend",
]
