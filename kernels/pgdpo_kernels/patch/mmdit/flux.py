"""FLUX.1: dual blocks of a text and an image stream, single blocks of both in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
    _get_qkv_projections,
)
from torch import nn

from ..replace import Ops, Replacement, of_blocks
from .joint import JointProcessor, Six, clipped, enter, leave, zero_modulation

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    FluxTransformerBlock.forward: "0b184cbe172708b6",
    FluxSingleTransformerBlock.forward: "57350a6dab842b40",
    FluxAttnProcessor.__call__: ("d5b36134887ebe45", "6576b68b6158e83b"),
    AdaLayerNormZero.forward: "93374820c014f812",
    AdaLayerNormZeroSingle.forward: "d48dfb2b1e75e64f",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        FluxTransformerBlock: dual_forward(ops),
        FluxSingleTransformerBlock: single_forward(ops, flux_mlp),
    }
    return of_stacks(model, ops, forwards, (FluxAttnProcessor,))


def of_stacks(
    model: nn.Module, ops: Ops, forwards: dict[type, Callable], known: tuple[type, ...]
) -> list[Replacement]:
    return [
        item
        for stack in ("transformer_blocks", "single_transformer_blocks")
        for item in of_blocks(model, stack, ops, forwards, "attn", FusedFluxAttnProcessor, known)
    ]


def dual_forward(ops: Ops) -> Callable:
    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kwargs = (joint_attention_kwargs or {}) | {"image_rotary_emb": image_rotary_emb}
        return zero_dual(ops, self, hidden_states, encoder_hidden_states, temb, **kwargs)

    return forward


def zero_dual(
    ops: Ops,
    block: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    **attention,
) -> tuple[torch.Tensor, torch.Tensor]:
    own, context = (zero_modulation(norm, temb) for norm in (block.norm1, block.norm1_context))
    return dual(ops, block, hidden_states, encoder_hidden_states, own, context, **attention)


def dual(
    ops: Ops,
    block: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    own: Six,
    context: Six,
    **attention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The text stream and the image stream after a dual block."""
    hidden_states, normed = enter(ops, hidden_states, own, block.norm1)
    encoder_hidden_states, text_normed = enter(ops, encoder_hidden_states, context, block.norm1_context)
    branch, text_branch, *adapters = block.attn(
        hidden_states=normed, encoder_hidden_states=text_normed, **attention
    )
    hidden_states = leave(ops, hidden_states, branch, own, block.norm2, block.ff)
    for adapter in adapters:  # an IP adapter's processor returns a third branch
        hidden_states = hidden_states + adapter
    encoder_hidden_states = leave(
        ops, encoder_hidden_states, text_branch, context, block.norm2_context, block.ff_context
    )
    return clipped(encoder_hidden_states), hidden_states


def single_forward(ops: Ops, mlp: Callable) -> Callable:
    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kwargs = (joint_attention_kwargs or {}) | {"image_rotary_emb": image_rotary_emb}
        return joined_single(ops, self, hidden_states, encoder_hidden_states, temb, mlp, **kwargs)

    return forward


def joined_single(
    ops: Ops,
    block: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    mlp: Callable,
    **attention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A single block that joins the streams and parts them."""
    text = encoder_hidden_states.shape[1]
    hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    modulation = zero_modulation(block.norm, temb, 3)
    hidden_states = single(ops, block, hidden_states, modulation, mlp, **attention)
    return hidden_states[:, :text], hidden_states[:, text:]


def single(
    ops: Ops,
    block: nn.Module,
    hidden_states: torch.Tensor,  # text and image
    modulation: tuple[torch.Tensor, ...],
    mlp: Callable,  # of the block and the normed states
    **attention,
) -> torch.Tensor:
    hidden_states, normed = enter(ops, hidden_states, modulation, block.norm)
    inner = mlp(block, normed)
    branch = torch.cat([block.attn(hidden_states=normed, **attention), inner], dim=2)
    return clipped(ops.gate_residual(hidden_states, block.proj_out(branch), modulation[2]))


def flux_mlp(block: nn.Module, normed: torch.Tensor) -> torch.Tensor:
    return block.act_mlp(block.proj_mlp(normed))


class FusedFluxAttnProcessor(JointProcessor):
    """`FluxAttnProcessor`, and those of the models that took it over."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        projections = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        image, text = projections[:3], projections[3:]
        tables = image_rotary_emb and tuple(table.to(hidden_states.device) for table in image_rotary_emb)
        if encoder_hidden_states is None:
            norms = (attn.norm_q, attn.norm_k)
            query, key = self.normed(attn, *image[:2], "rms_head", norms, tables)
            return self.attend(attn, query, key, image[2], attention_mask)
        tokens = encoder_hidden_states.shape[1]
        own, context = (
            tables and tuple(table[part] for table in tables) for part in (slice(tokens, None), slice(tokens))
        )
        joint = self.text_first(attn, image, text, "rms_head", own, context)
        return self.out(attn, self.attend(attn, *joint, attention_mask), tokens)
