"""Sana-WM and its refiner, which has LTX-2's picture alone; the attention of both, of recurrences and caches, stays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_sana_wm import SanaVideoMSCamCtrlBlock
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformerBlock
from torch import nn

from ..replace import Ops, Replacement, of_blocks, promoted
from ..residual import Residual

# As in diffusers 0.42 and 0.42.1
SOURCES = {
    SanaVideoMSCamCtrlBlock.forward: "1790e1666161194a",
    SanaWMLTX2RefinerTransformerBlock.forward: "45ebc2756cbbf83c",
    SanaWMLTX2RefinerTransformerBlock.get_mod_params: "0889c2ec35cb3c80",
    RMSNorm.forward: "ab9075d036873ac9",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    stack = "transformer_blocks" if hasattr(model, "transformer_blocks") else "blocks"
    forwards = {
        SanaVideoMSCamCtrlBlock: block_forward(ops),
        SanaWMLTX2RefinerTransformerBlock: refiner_forward(ops),
    }
    return of_blocks(model, stack, ops, forwards)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: SanaVideoMSCamCtrlBlock,
        x: torch.Tensor,
        y: torch.Tensor,
        t: torch.Tensor,  # [B, 1, F, 6 D]
        mask: torch.Tensor | None = None,
        THW: tuple[int, int, int] | None = None,
        rotary_emb: torch.Tensor | None = None,
        block_mask: torch.Tensor | None = None,
        camera_conditions: torch.Tensor | None = None,
        ucpe_ray_transforms: tuple | None = None,
        plucker_emb: torch.Tensor | None = None,
        frame_valid_mask: torch.Tensor | None = None,
        chunk_size: int | None = None,
    ) -> torch.Tensor:
        camera = {"camera_conditions": camera_conditions, "ucpe_ray_transforms": ucpe_ray_transforms}
        if frame_valid_mask is not None:  # what is padded is set to 0 between all steps
            given = {"frame_valid_mask": frame_valid_mask, "chunk_size": chunk_size, **camera}
            return type(self).forward(
                self, x, y, t, mask, THW, rotary_emb, block_mask, plucker_emb=plucker_emb, **given
            )
        rows = {"HW": THW, "rotary_emb": rotary_emb, "block_mask": block_mask}
        rows["chunk_size"] = self.chunk_size if chunk_size is None else chunk_size
        shift, scale, gate, ff_shift, ff_scale, ff_gate = pairs(self.scale_shift_table, t[:, 0])
        stream = Residual(ops, promoted(x, self.scale_shift_table, t))
        normed = stream.normed(self.norm1, scale, shift)
        stream.add(self.attn(normed, **rows, **camera), gate)
        if plucker_emb is not None and hasattr(self, "plucker_proj"):
            stream.add(self.plucker_proj(plucker_emb))
        stream.add(self.cross_attn(stream.total(), y, mask=mask))
        stream.add(self.mlp(stream.normed(self.norm2, ff_scale, ff_shift), HW=THW), ff_gate)
        return stream.total()

    return forward


def refiner_forward(ops: Ops) -> Callable:
    def forward(
        self: SanaWMLTX2RefinerTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 1 or N, 6 D]
        video_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        encoder_attention_mask: torch.Tensor | None = None,
        **cache,
    ) -> torch.Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = pairs(self.scale_shift_table, temb)
        stream = Residual(ops, promoted(hidden_states, self.scale_shift_table, temb))
        normed = stream.normed(self.norm1, scale, shift)
        stream.add(self.attn1(normed, query_rotary_emb=video_rotary_emb, **cache), gate)
        normed = stream.normed(self.norm2)
        text = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": encoder_attention_mask}
        stream.add(self.attn2(normed, query_rotary_emb=None, **text))
        stream.add(self.ff(stream.normed(self.norm3, ff_scale, ff_shift)), ff_gate)
        return stream.total()

    return forward


def pairs(table: torch.Tensor, temb: torch.Tensor) -> tuple:
    """A pair for every row of the table `[6, D]`, of temb `[B, 1, F or N, 6 D]`; they stay unsummed."""
    embeddings = temb.unflatten(2, (len(table), -1)).unbind(2)
    return tuple(zip(table.to(temb.device).unbind(0), embeddings, strict=True))
