"""Cosmos 3: norms and residuals of both pathways. Its queries and keys are of different numbers of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_cosmos3
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextMoTDecoderLayer
from torch import nn

from ..norms import affine
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.39 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    Cosmos3VLTextMoTDecoderLayer.forward: "2103ece3e8d0e7f6",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}
if hasattr(transformer_cosmos3, "Cosmos3NemotronRMSNorm"):  # since 0.40
    SOURCES[transformer_cosmos3.Cosmos3NemotronRMSNorm.forward] = "ebaeddc65009ed3d"


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "layers", ops, {Cosmos3VLTextMoTDecoderLayer: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: Cosmos3VLTextMoTDecoderLayer,
        und_seq: torch.Tensor,  # [N, D]
        gen_seq: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = und_seq.unsqueeze(0), gen_seq.unsqueeze(0)
        norms = self.input_layernorm, self.input_layernorm_moe_gen
        normed = (ops.norm_modulate(x, **affine(norm))[0] for x, norm in zip(sequences, norms, strict=True))
        branches = self.self_attn(*normed, rotary_emb)
        norms = self.post_attention_layernorm, self.post_attention_layernorm_moe_gen
        found = []
        for x, branch, norm, mlp in zip(
            sequences, branches, norms, (self.mlp, self.mlp_moe_gen), strict=True
        ):
            hidden, normed = ops.gate_residual_norm_modulate(x, branch.unsqueeze(0), **affine(norm))
            found.append(hidden[0] + mlp(normed[0]))
        return tuple(found)

    return forward
