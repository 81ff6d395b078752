"""Bria FIBO 2: Z-Image's blocks, some of them with a cross-attention to the text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_bria_fibo2 import (
    BriaFibo2AttnProcessor,
    BriaFibo2TransformerBlock,
    select_per_token,
)
from torch import nn

from ..norms import affine
from ..replace import Ops, Replacement, of_blocks, promoted
from .lumina import FusedZImageAttnProcessor

# As in diffusers 0.42 and 0.42.1
SOURCES = {
    BriaFibo2TransformerBlock.forward: "f770e4269627c7e0",
    BriaFibo2AttnProcessor.__call__: "8dc071e38915e38c",
    select_per_token: "f5c604cd985c7ce2",
    RMSNorm.forward: "ab9075d036873ac9",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {BriaFibo2TransformerBlock: block_forward(ops)}, (BriaFibo2AttnProcessor,)
    return [
        item
        for stack in ("noise_refiner", "layers")
        for item in of_blocks(model, stack, ops, forwards, "attention", FusedZImageAttnProcessor, known)
    ]


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: BriaFibo2TransformerBlock,
        x: torch.Tensor,
        attn_mask: torch.Tensor | None,
        freqs_cis: torch.Tensor,
        adaln_input: torch.Tensor | None = None,
        noise_mask: torch.Tensor | None = None,  # [B, N], 1 for noisy tokens
        adaln_noisy: torch.Tensor | None = None,
        adaln_clean: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if noise_mask is None:
            vectors = modulation(self, adaln_input)
        else:
            pairs = zip(modulation(self, adaln_noisy), modulation(self, adaln_clean), strict=True)
            vectors = [select_per_token(*pair, noise_mask, x.shape[1]) for pair in pairs]
        scale, gate, ff_scale, ff_gate = vectors
        x = promoted(x, gate)
        normed = ops.norm_modulate(x, scale, **affine(self.attention_norm1))
        branch = self.attention(normed, attention_mask=attn_mask, freqs_cis=freqs_cis)
        branch = ops.norm_modulate(branch, **affine(self.attention_norm2))
        if self.cross_attention is not None:
            x, normed = ops.gate_residual_norm_modulate(x, branch, gate, **affine(self.cross_attn_norm1))
            branch = self.cross_attention(
                normed, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
            )
            branch = ops.norm_modulate(branch, **affine(self.cross_attn_norm2))
            # One number: its gradient is summed over the width before it is rounded.
            gate = self.cross_attn_gate.tanh().float().repeat(1, 1, x.shape[2])
        x, normed = ops.gate_residual_norm_modulate(x, branch, gate, ff_scale, **affine(self.ffn_norm1))
        branch = ops.norm_modulate(self.feed_forward(normed), **affine(self.ffn_norm2))
        return ops.gate_residual(x, branch, ff_gate)

    return forward


def modulation(block: BriaFibo2TransformerBlock, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Scale and gate of the attention, scale and gate of the feed-forward, `[B, D]` each."""
    scale, gate, ff_scale, ff_gate = block.adaLN_modulation(temb).chunk(4, dim=1)
    return scale, gate.tanh(), ff_scale, ff_gate.tanh()
