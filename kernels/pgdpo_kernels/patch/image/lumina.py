"""Lumina-Next, Lumina 2 and Z-Image: RMS norms before and after each branch, gates behind a tanh."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import LuminaRMSNormZero, RMSNorm
from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiTBlock
from diffusers.models.transformers.transformer_lumina2 import Lumina2TransformerBlock
from diffusers.models.transformers.transformer_z_image import (
    ZImageTransformerBlock,
    ZSingleStreamAttnProcessor,
    select_per_token,
)
from torch import nn

from ..attention import FusedProcessor
from ..norms import affine
from ..replace import Forward, Ops, Processor, Replacement, Unsupported, promoted

# As in diffusers 0.38 to 0.42.1; two digests where annotations came with 0.41
SOURCES = {
    LuminaNextDiTBlock.forward: "90e0ddbde95af801",
    Lumina2TransformerBlock.forward: "03b7198b1d7be053",
    LuminaRMSNormZero.forward: "07b21247059636ee",
    ZImageTransformerBlock.forward: ("92f4865ff329f8f9", "0010ab78ad4019c9"),
    ZSingleStreamAttnProcessor.__call__: "f8f65d350a617957",
    select_per_token: "f5c604cd985c7ce2",
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}
STACKS = ("noise_refiner", "context_refiner", "siglip_refiner", "layers")


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        LuminaNextDiTBlock: next_forward(ops),
        Lumina2TransformerBlock: lumina2_forward(ops),
        ZImageTransformerBlock: z_image_forward(ops),
    }
    found: list[Replacement] = []
    for stack in STACKS:
        for index, block in enumerate(getattr(model, stack, None) or ()):
            path = f"{stack}.{index}"
            if type(block) not in forwards:
                raise Unsupported(f"{path} is a {type(block).__name__}")
            if ops.in_blocks:
                forward = forwards[type(block)]
                found.append(Forward(block, path, forward))
            # The others' attention has fewer heads of keys than of queries, or a LayerNorm over all heads.
            if ops.in_attention and type(block) is ZImageTransformerBlock:
                processor, known = FusedZImageAttnProcessor(ops), (ZSingleStreamAttnProcessor,)
                found.append(Processor(block.attention, f"{path}.attention", processor, known))
    return found


def sandwich(
    ops: Ops,
    hidden_states: torch.Tensor,
    norms: tuple[nn.Module, nn.Module, nn.Module, nn.Module],
    modulation: tuple[torch.Tensor | None, ...],
    attend: Callable[[torch.Tensor], torch.Tensor],
    feed_forward: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """A block whose branches are normed on their way in and on their way out.

    Args:
        norms: before and after attention, before and after the feed-forward.
        modulation: scale and gate of attention, scale and gate of the feed-forward, the gates before their tanh;
            all None for a block without.
    """
    into, out_of, into_ff, out_of_ff = (affine(norm) for norm in norms)
    scale, gate, ff_scale, ff_gate = modulation
    if gate is not None:
        gate, ff_gate = gate.tanh(), ff_gate.tanh()
        hidden_states = promoted(hidden_states, gate)
    branch = attend(ops.norm_modulate(hidden_states, scale, **into))
    branch = ops.norm_modulate(branch, **out_of)
    hidden_states, normed = ops.gate_residual_norm_modulate(hidden_states, branch, gate, ff_scale, **into_ff)
    branch = ops.norm_modulate(feed_forward(normed), **out_of_ff)
    return hidden_states + branch if gate is None else ops.gate_residual(hidden_states, branch, ff_gate)


def next_forward(ops: Ops) -> Callable:
    def forward(
        self: LuminaNextDiTBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_mask: torch.Tensor,
        temb: torch.Tensor,
        cross_attention_kwargs: dict | None = None,
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            """Self-attention, and cross-attention of the same queries behind a gate for each head."""
            own = {"hidden_states": normed, "query_rotary_emb": image_rotary_emb, **cross_attention_kwargs}
            picture = self.attn1(
                encoder_hidden_states=normed,
                attention_mask=attention_mask,
                key_rotary_emb=image_rotary_emb,
                **own,
            )
            text = self.attn2(
                encoder_hidden_states=self.norm1_context(encoder_hidden_states),
                attention_mask=encoder_mask,
                key_rotary_emb=None,
                **own,
            )
            mixed = picture + text * self.gate.tanh().view(1, 1, -1, 1)
            return self.attn2.to_out[0](mixed.flatten(-2))

        norms = (self.norm1.norm, self.norm2, self.ffn_norm1, self.ffn_norm2)
        return sandwich(ops, hidden_states, norms, modulation(self.norm1, temb), attend, self.feed_forward)

    return forward


def lumina2_forward(ops: Ops) -> Callable:
    def forward(
        self: Lumina2TransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: torch.Tensor,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attn(
                hidden_states=normed,
                encoder_hidden_states=normed,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )

        first, vectors = self.norm1, (None,) * 4
        if self.modulation:
            first, vectors = self.norm1.norm, modulation(self.norm1, temb)
        norms = (first, self.norm2, self.ffn_norm1, self.ffn_norm2)
        return sandwich(ops, hidden_states, norms, vectors, attend, self.feed_forward)

    return forward


def modulation(norm: LuminaRMSNormZero, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Scale and gate of attention, scale and gate of the feed-forward, each `[B, D]`."""
    return norm.linear(norm.silu(temb)).chunk(4, dim=1)


def z_image_forward(ops: Ops) -> Callable:
    def forward(
        self: ZImageTransformerBlock,
        x: torch.Tensor,
        attn_mask: torch.Tensor,
        freqs_cis: torch.Tensor,
        adaln_input: torch.Tensor | None = None,
        noise_mask: torch.Tensor | None = None,
        adaln_noisy: torch.Tensor | None = None,
        adaln_clean: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attention(normed, attention_mask=attn_mask, freqs_cis=freqs_cis)

        vectors = (None,) * 4
        if self.modulation and noise_mask is None:
            vectors = self.adaLN_modulation(adaln_input).chunk(4, dim=1)
        elif self.modulation:  # a vector for each token: those of clean images have a timestep of their own
            noisy, clean = self.adaLN_modulation(adaln_noisy), self.adaLN_modulation(adaln_clean)
            vectors = select_per_token(noisy, clean, noise_mask, x.shape[1]).chunk(4, dim=2)
        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        return sandwich(ops, x, norms, vectors, attend, self.feed_forward)

    return forward


class FusedZImageAttnProcessor(FusedProcessor):
    """`ZSingleStreamAttnProcessor`, its complex table split in two.

    At every call: a controlnet shares blocks with the model, and hands them a table of its own.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: torch.Tensor | None = None,  # [B, N, head size / 2]
    ) -> torch.Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        tables = None
        if freqs_cis is not None:
            tables = freqs_cis.real.contiguous(), freqs_cis.imag.contiguous()
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), tables)
        if attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = attention_mask[:, None, None, :]
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states
