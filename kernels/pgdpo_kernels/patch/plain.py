"""A block without modulation: a norm with weights of its own before each branch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .norms import affine
from .replace import Ops

Half = tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]  # a norm, and the branch that reads it


def plain(ops: Ops, hidden_states: torch.Tensor, *halves: Half) -> torch.Tensor:
    """Each branch is added in the pass of the norm that follows it, the last by itself."""
    (norm, branch_of), *rest = halves
    branch = branch_of(ops.norm_modulate(hidden_states, **affine(norm)))
    for norm, branch_of in rest:
        hidden_states, normed = ops.gate_residual_norm_modulate(hidden_states, branch, **affine(norm))
        branch = branch_of(normed)
    return hidden_states + branch
