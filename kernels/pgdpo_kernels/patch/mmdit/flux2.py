"""FLUX.2: modulation is made once for all blocks; single blocks project attention and feed-forward together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import (
    Flux2AttnProcessor,
    Flux2Modulation,
    Flux2ParallelSelfAttnProcessor,
    Flux2SingleTransformerBlock,
    Flux2TransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks
from .flux import FusedFluxAttnProcessor, dual
from .joint import clipped, enter

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    Flux2TransformerBlock.forward: "b5d26783a67cbd6d",
    Flux2SingleTransformerBlock.forward: "e1baa440356a9b3a",
    Flux2AttnProcessor.__call__: ("2106c36979e28f30", "a92fd9cfb896bedb"),
    Flux2ParallelSelfAttnProcessor.__call__: ("18a20dca47451835", "5850a55d0e2a6b05"),
    Flux2Modulation.split: "18c12fbd24a5ba3f",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    duals, singles = "transformer_blocks", "single_transformer_blocks"
    forwards = {Flux2TransformerBlock: dual_forward(ops), Flux2SingleTransformerBlock: single_forward(ops)}
    processors = FusedFluxAttnProcessor, FusedParallelAttnProcessor
    return [
        *of_blocks(model, duals, ops, forwards, "attn", processors[0], (Flux2AttnProcessor,)),
        *of_blocks(model, singles, ops, forwards, "attn", processors[1], (Flux2ParallelSelfAttnProcessor,)),
    ]


def dual_forward(ops: Ops) -> Callable:
    def forward(
        self: Flux2TransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb_mod_img: torch.Tensor,  # [B, 1 or N, 6 D]
        temb_mod_txt: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own, context = (sum(Flux2Modulation.split(temb, 2), ()) for temb in (temb_mod_img, temb_mod_txt))
        kwargs = (joint_attention_kwargs or {}) | {"image_rotary_emb": image_rotary_emb}
        return dual(ops, self, hidden_states, encoder_hidden_states, own, context, **kwargs)

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: Flux2SingleTransformerBlock,
        hidden_states: torch.Tensor,  # of text and image where there are no encoder_hidden_states
        encoder_hidden_states: torch.Tensor | None,
        temb_mod: torch.Tensor,  # [B, 1 or N, 3 D]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
        split_hidden_states: bool = False,
        text_seq_len: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if encoder_hidden_states is not None:
            text_seq_len = encoder_hidden_states.shape[1]
            hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        (modulation,) = Flux2Modulation.split(temb_mod, 1)
        hidden_states, normed = enter(ops, hidden_states, modulation, self.norm)
        branch = self.attn(
            hidden_states=normed, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
        )
        hidden_states = clipped(ops.gate_residual(hidden_states, branch, modulation[2]))
        if not split_hidden_states:
            return hidden_states
        return hidden_states[:, :text_seq_len], hidden_states[:, text_seq_len:]

    return forward


class FusedParallelAttnProcessor(FusedProcessor):
    """`Flux2ParallelSelfAttnProcessor`: attention beside the feed-forward."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        projected = attn.to_qkv_mlp_proj(hidden_states)
        # By their ratio: under tensor parallelism a rank has its share of both.
        widths = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
        own = projected.shape[-1] * widths[0] // sum(widths)
        query, key, value = projected[..., :own].chunk(3, dim=-1)
        tables = image_rotary_emb and tuple(table.to(query.device) for table in image_rotary_emb)
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), tables)
        inner = attn.mlp_act_fn(projected[..., own:])
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out(torch.cat([hidden_states, inner], dim=-1))
