"""SkyReels-V2, Wan-VACE, Wan-Animate and ChronoEdit: Wan's blocks, copied or with another way in and out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers import (
    transformer_chronoedit,
    transformer_skyreels_v2,
    transformer_wan,
    transformer_wan_animate,
)
from diffusers.models.transformers.transformer_skyreels_v2 import (
    SkyReelsV2AttnProcessor,
    SkyReelsV2TransformerBlock,
)
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformerBlock
from torch import nn

from ..replace import Ops, Replacement, of_blocks
from ..video.wan import FusedWanAttnProcessor, block, block_forward

COPIES = (transformer_wan, transformer_wan_animate, transformer_chronoedit)
PROCESSORS = (SkyReelsV2AttnProcessor, *(copy.WanAttnProcessor for copy in COPIES))

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    SkyReelsV2TransformerBlock.forward: "3f34de9e2b0be16c",
    SkyReelsV2AttnProcessor.__call__: "be927e58ea7fba80",
    transformer_skyreels_v2._get_qkv_projections: "6dae2bf5f7fabf98",
    WanVACETransformerBlock.forward: "5dbfa51a74b89a97",
}
for copy in COPIES:  # by their comments, the copies are told apart
    SOURCES[copy.WanTransformerBlock.forward] = "21c15441b009932c"
    SOURCES[copy.WanAttnProcessor.__call__] = ("13c09feedcfe814a", "a000dc173c7fbf59")
    SOURCES[copy._get_qkv_projections] = "657bbdb508a6c612"


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {copy.WanTransformerBlock: block_forward(ops) for copy in COPIES}
    forwards |= {
        SkyReelsV2TransformerBlock: skyreels_forward(ops),
        WanVACETransformerBlock: vace_forward(ops),
    }
    return [
        item
        for stack in ("vace_blocks", "blocks")
        if hasattr(model, stack)
        for item in of_blocks(model, stack, ops, forwards, "attn1", FusedWanAttnProcessor, PROCESSORS)
    ]


def skyreels_forward(ops: Ops) -> Callable:
    def forward(
        self: SkyReelsV2TransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 6, D], or [B, 6, N, D] with diffusion forcing
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        embeddings = temb.unbind(1)
        return block(ops, self, hidden_states, encoder_hidden_states, embeddings, rotary_emb, attention_mask)

    return forward


def vace_forward(ops: Ops) -> Callable:
    def forward(
        self: WanVACETransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        control_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        if self.proj_in is not None:
            control_hidden_states = self.proj_in(control_hidden_states) + hidden_states
        embeddings = temb.unbind(1)
        control_hidden_states = block(
            ops, self, control_hidden_states, encoder_hidden_states, embeddings, rotary_emb
        )
        conditioning = None if self.proj_out is None else self.proj_out(control_hidden_states)
        return conditioning, control_hidden_states

    return forward
