"""Stable Audio 3: RMS norms, gates through a sigmoid; its attention is a difference of two, half of a head turned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_stable_audio3 import (
    StableAudio3DiTBlock,
    StableAudio3RMSNorm,
    _modulate,
)
from torch import nn

from ..replace import Ops, Replacement, of_blocks, promoted

# As in diffusers 0.40 to 0.42.1
SOURCES = {
    StableAudio3DiTBlock.forward: "a68d554f3b94a76b",
    StableAudio3RMSNorm.forward: "fc5470575e9b89ed",
    _modulate: "183e845cd96d8adc",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "transformer_blocks", ops, {StableAudio3DiTBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: StableAudio3DiTBlock,
        hidden_states: torch.Tensor,
        context: torch.Tensor,
        global_modulation: torch.Tensor,  # [B, 6 D]
        rope: torch.Tensor,
        context_mask: torch.Tensor | None = None,
        local_seq: torch.Tensor | None = None,
        num_memory_tokens: int = 0,
    ) -> torch.Tensor:
        vectors = (self.to_scale_shift_gate + global_modulation).chunk(6, dim=-1)
        scale, shift, gate, ff_scale, ff_shift, ff_gate = vectors
        gate, ff_gate = torch.sigmoid(1 - gate), torch.sigmoid(1 - ff_gate)
        hidden_states = promoted(hidden_states, gate)

        normed = ops.norm_modulate(hidden_states, scale, shift, **rms(self.pre_norm))
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, self.self_attn(normed, rope=rope), gate, **rms(self.cross_attend_norm)
        )
        branch = self.cross_attn(normed, context=context, context_mask=context_mask)
        if local_seq is not None:  # of sound that stays, for all tokens but those of memory
            kept = branch[:, num_memory_tokens:] + self.to_local_embed(local_seq)
            branch = torch.cat([branch[:, :num_memory_tokens], kept], dim=1)
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, None, ff_scale, ff_shift, **rms(self.ff_norm)
        )
        return ops.gate_residual(hidden_states, self.ff(normed), ff_gate)

    return forward


def rms(norm: StableAudio3RMSNorm) -> dict:
    return {"norm": "rms", "weight": norm.gamma, "eps": norm.eps}
