"""Fused Triton ops for preference training of diffusion models. Depends on torch and triton alone."""

from .backend import get_backend, set_backend
from .diffusion_dpo import diffusion_dpo_loss
from .gate_residual import gate_residual
from .gate_residual_norm_modulate import gate_residual_norm_modulate
from .noise import noise_pair, pair_noise
from .norm_modulate import norm_modulate
from .pair_errors import pair_errors
from .patch import apply_to, revert
from .preference import preference_loss
from .qk_norm_rope import qk_norm_rope
from .types import PairErrors, PreferenceLoss

__all__ = [
    "PairErrors",
    "PreferenceLoss",
    "apply_to",
    "diffusion_dpo_loss",
    "gate_residual",
    "gate_residual_norm_modulate",
    "get_backend",
    "noise_pair",
    "norm_modulate",
    "pair_errors",
    "pair_noise",
    "preference_loss",
    "qk_norm_rope",
    "revert",
    "set_backend",
]
