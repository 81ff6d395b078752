"""ERNIE-Image: one modulation for all blocks, hidden states with the tokens before the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ernie_image import (
    ErnieImageSharedAdaLNBlock,
    ErnieImageTransformer2DModel,
)
from torch import nn

from ..norms import affine
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.38 to 0.42.1, where annotations and a docstring came. The model gives every token the same vectors.
SOURCES = {
    ErnieImageSharedAdaLNBlock.forward: ("5f14c4cbd2b6e4a6", "4e0e905bbd98a34d"),
    ErnieImageTransformer2DModel.forward: ("f89422de81698b91", "2c29e46611d4c1a1", "e0e866764129f9cf"),
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    """Its attention turns halves of heads, after torch's own fused norm: it keeps its processor."""
    return of_blocks(model, "layers", ops, {ErnieImageSharedAdaLNBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: ErnieImageSharedAdaLNBlock,
        x: torch.Tensor,  # [N, B, D]
        rotary_pos_emb: torch.Tensor,
        temb: tuple[torch.Tensor, ...],  # six times [N, B, D], the same for every token
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (vectors[0] for vectors in temb)
        x = x.transpose(0, 1)
        normed = ops.norm_modulate(x, scale, shift, **affine(self.adaLN_sa_ln))
        branch = self.self_attention(normed, attention_mask=attention_mask, image_rotary_emb=rotary_pos_emb)
        x, normed = ops.gate_residual_norm_modulate(
            x, branch, gate, ff_scale, ff_shift, **affine(self.adaLN_mlp_ln)
        )
        return ops.gate_residual(x, self.mlp(normed), ff_gate).transpose(0, 1)

    return forward
