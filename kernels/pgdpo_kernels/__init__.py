"""Fused Triton ops for preference training of diffusion models. Depends on torch and triton alone."""

from .backend import get_backend, set_backend
from .explain import explain
from .heads.gate_heads import gate_heads
from .heads.norm_rope import norm_rope
from .heads.qk_norm_rope import qk_norm_rope
from .hidden.gate_residual import gate_residual
from .hidden.gate_residual_norm_modulate import gate_residual_norm_modulate
from .hidden.norm_modulate import norm_modulate
from .noise.noise_pair import noise_pair, pair_noise
from .pairs.diffusion_dpo import DiffusionDPOLoss, diffusion_dpo_loss
from .pairs.group_errors import group_errors
from .pairs.pair_errors import pair_errors
from .pairs.preference import mean_loss, preference_loss
from .patch import apply_to, revert
from .types import GroupErrors, PairErrors, PreferenceLoss
from .version import __version__

__all__ = [
    "DiffusionDPOLoss",
    "GroupErrors",
    "PairErrors",
    "PreferenceLoss",
    "__version__",
    "apply_to",
    "diffusion_dpo_loss",
    "explain",
    "gate_heads",
    "gate_residual",
    "gate_residual_norm_modulate",
    "get_backend",
    "group_errors",
    "mean_loss",
    "noise_pair",
    "norm_modulate",
    "norm_rope",
    "pair_errors",
    "pair_noise",
    "preference_loss",
    "qk_norm_rope",
    "revert",
    "set_backend",
]
