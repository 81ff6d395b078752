"""A block's residual stream, written as a block reads: a branch is added in the pass of the norm that follows it."""

from __future__ import annotations

import torch
from torch import nn

from .norms import affine
from .replace import Ops


class Residual:
    """Hidden states `[B, N, D]` with at most one branch yet to be added to them.

    Modulations are as the ops take them: tensors or pairs (table, embedding).
    """

    def __init__(self, ops: Ops, hidden: torch.Tensor):
        self.ops, self.hidden = ops, hidden
        self.branch = self.gate = None

    def add(self, branch: torch.Tensor, gate=None) -> None:
        """`+ branch * gate`, or `+ branch`."""
        self.hidden, self.branch, self.gate = self.total(), branch, gate

    def normed(self, norm: nn.Module, scale=None, shift=None) -> torch.Tensor:
        """The stream through a LayerNorm or an RMSNorm of torch's or of diffusers', and its modulation."""
        if self.branch is None:
            return self.ops.norm_modulate(self.hidden, scale, shift, **affine(norm))
        self.hidden, normed = self.ops.gate_residual_norm_modulate(
            self.hidden, self.branch, self.gate, scale, shift, **affine(norm)
        )
        self.branch = self.gate = None
        return normed

    def total(self) -> torch.Tensor:
        """The stream with all branches in it, for what is no norm."""
        if self.gate is not None:
            self.hidden = self.ops.gate_residual(self.hidden, self.branch, self.gate)
        elif self.branch is not None:
            self.hidden = (self.hidden + self.branch).to(self.hidden.dtype)
        self.branch = self.gate = None
        return self.hidden
