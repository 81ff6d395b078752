"""Nucleus-Image: a stream that reads the text, with experts; grouped-query attention keeps its processor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoEImageTransformerBlock
from torch import nn

from ..replace import Ops, Replacement, of_blocks, promoted
from .joint import clipped

# As in diffusers 0.38 to 0.42.1
SOURCES = {NucleusMoEImageTransformerBlock.forward: "c9e321f146193085"}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {NucleusMoEImageTransformerBlock: block_forward(ops)}
    return of_blocks(model, "transformer_blocks", ops, forwards)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: NucleusMoEImageTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_kwargs: dict | None = None,
    ) -> torch.Tensor:
        kwargs = attention_kwargs or {}
        scale, gate, ff_scale, ff_gate = self.img_mod(temb).chunk(4, dim=-1)
        gate, ff_gate = gate.clamp(-2, 2).tanh(), ff_gate.clamp(-2, 2).tanh()
        hidden_states = promoted(hidden_states, gate)
        cached = kwargs.get("cached_txt_key") is not None
        branch = self.attn(
            hidden_states=ops.norm_modulate(hidden_states, scale, eps=self.pre_attn_norm.eps),
            encoder_hidden_states=None if cached else self.encoder_proj(encoder_hidden_states),
            image_rotary_emb=image_rotary_emb,
            **kwargs,
        )
        eps = self.pre_mlp_norm.eps
        if self.moe_enabled:  # the router reads the norm as it is before modulation
            hidden_states, normed = ops.gate_residual_norm_modulate(hidden_states, branch, gate, eps=eps)
            modulated = normed * (1 + ff_scale.unsqueeze(1))
            branch = self.img_mlp(modulated, normed, timestep=temb)
        else:
            hidden_states, modulated = ops.gate_residual_norm_modulate(
                hidden_states, branch, gate, ff_scale, eps=eps
            )
            branch = self.img_mlp(modulated)
        return clipped(ops.gate_residual(hidden_states, branch, ff_gate))

    return forward
