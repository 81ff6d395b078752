"""LongCat-AudioDiT: LayerNorms in fp32, one modulation for all blocks or one for each; halves of heads are turned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_longcat_audio_dit import AudioDiTBlock
from torch import nn

from ..norms import affine
from ..replace import Ops, Replacement, of_blocks, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {AudioDiTBlock.forward: "9cd4b81bffee397d"}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "blocks", ops, {AudioDiTBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: AudioDiTBlock,
        hidden_states: torch.Tensor,
        timestep_embed: torch.Tensor,
        cond: torch.Tensor,
        mask: torch.Tensor | None = None,
        cond_mask: torch.Tensor | None = None,
        rope: tuple | None = None,
        cond_rope: tuple | None = None,
        adaln_global_out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        vectors = modulation(self, timestep_embed, cond, cond_mask, adaln_global_out).chunk(6, dim=-1)
        gate, scale, shift, ff_gate, ff_scale, ff_shift = vectors
        hidden_states = promoted(hidden_states, gate)
        normed = ops.norm_modulate(hidden_states, scale, shift, eps=1e-6)
        branch = self.self_attn(normed, attention_mask=mask, audio_rotary_emb=rope)
        if self.use_cross_attn:
            if isinstance(self.cross_attn_norm, nn.Identity):
                hidden_states = normed = ops.gate_residual(hidden_states, branch, gate)
            else:
                hidden_states, normed = ops.gate_residual_norm_modulate(
                    hidden_states, branch, gate, **affine(self.cross_attn_norm)
                )
            gate = None
            branch = self.cross_attn(
                hidden_states=normed,
                encoder_hidden_states=self.cross_attn_norm_c(cond),
                post_attention_mask=mask,
                attention_mask=cond_mask,
                audio_rotary_emb=rope,
                prompt_rotary_emb=cond_rope,
            )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, eps=1e-6
        )
        return ops.gate_residual(hidden_states, self.ffn(normed), ff_gate)

    return forward


def modulation(
    block: AudioDiTBlock,
    timestep_embed: torch.Tensor,
    cond: torch.Tensor,
    cond_mask: torch.Tensor | None,
    shared: torch.Tensor | None,
) -> torch.Tensor:
    """Six vectors for each sample, `[B, 6 D]`: the block's own, or those of all blocks and its table."""
    if block.adaln_type != "local" or shared is not None:
        return shared + block.adaln_scale_shift
    if block.adaln_use_text_cond:
        words = cond_mask.sum(1, keepdim=True).clamp(min=1).to(cond.dtype)
        timestep_embed = timestep_embed + cond.sum(1) / words
    return block.adaln_mlp(timestep_embed)
