"""LTX-2: picture and sound, each a residual stream, and the attention of both, to each other and to the prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2AudioVideoAttnProcessor,
    LTX2AudioVideoRotaryPosEmbed,
    LTX2PerturbedAttnProcessor,
    LTX2VideoTransformerBlock,
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import nn

from ..attention import FusedProcessor, mask_of_heads
from ..replace import Forward, Ops, Processor, Replacement, of_blocks, promoted
from ..residual import Residual
from .ltx import half_tables

# As in diffusers 0.38 to 0.42.1; before 0.40 the block has no static prompt modulation
SOURCES = {
    LTX2VideoTransformerBlock.forward: ("1dbdd9ab731b53b9", "423e907eb908ef50"),
    LTX2VideoTransformerBlock.get_mod_params: "493775244f201a41",
    LTX2AudioVideoAttnProcessor.__call__: "0391667b7f0a45ae",
    LTX2PerturbedAttnProcessor.__call__: "ab3b88fd4d262072",
    LTX2AudioVideoRotaryPosEmbed.forward: "6432e1c51dd6807a",
    apply_interleaved_rotary_emb: "755d35ce421998d4",
    apply_split_rotary_emb: "101de9c72dfea98a",
}
PROCESSORS = (LTX2AudioVideoAttnProcessor, LTX2PerturbedAttnProcessor)
ROPES = ("rope", "audio_rope", "cross_attn_rope", "cross_attn_audio_rope")
ATTENTIONS = ("attn1", "attn2", "audio_to_video_attn", "audio_attn1", "audio_attn2", "video_to_audio_attn")


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found: list[Replacement] = []
    if ops.in_attention:
        ropes = ((name, getattr(model, name)) for name in ROPES)
        found += [Forward(rope, name, half_tables) for name, rope in ropes if rope.rope_type == "interleaved"]
        for index, block in enumerate(model.transformer_blocks):
            for name in ATTENTIONS:
                module = block.get_submodule(name)
                fused = FusedLTX2AttnProcessor if module.to_gate_logits is None else GatedLTX2AttnProcessor
                found.append(Processor(module, f"transformer_blocks.{index}.{name}", fused(ops), PROCESSORS))
    forwards = {LTX2VideoTransformerBlock: block_forward(ops)}
    return found + of_blocks(model, "transformer_blocks", ops, forwards)


class Modality:
    """Picture or sound within a block: its stream, and the block's modules for it, which a prefix tells apart."""

    def __init__(self, ops: Ops, block: LTX2VideoTransformerBlock, prefix: str, hidden: torch.Tensor, temb):
        self.block, self.prefix = block, prefix
        table = self.part("scale_shift_table")
        self.modulation = modulation(table, temb)
        self.stream = Residual(ops, promoted(hidden, table, temb))

    def part(self, name: str):
        return getattr(self.block, self.prefix + name)

    def self_attention(self, rotary_emb, mask: torch.Tensor | None, perturbation: dict) -> None:
        shift, scale, gate = self.modulation[:3]
        normed = self.stream.normed(self.part("norm1"), scale, shift)
        branch = self.part("attn1")(normed, None, mask, rotary_emb, **perturbation)
        self.stream.add(branch, gate)

    def prompt_attention(self, prompt: torch.Tensor, temb: torch.Tensor | None, mask) -> None:
        if self.block.cross_attn_adaln:
            prompt = self.modulated_prompt(prompt, temb)
        shift, scale, gate = self.modulation[6:] or (None, None, None)
        normed = self.stream.normed(self.part("norm2"), scale, shift)
        self.stream.add(self.part("attn2")(normed, prompt, mask), gate)

    def modulated_prompt(self, prompt: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
        table = self.part("prompt_scale_shift_table")
        if temb is None:  # the same at every timestep
            shift, scale = table.to(self.stream.hidden).unbind(0)
        else:
            shift, scale = self.block.get_mod_params(table, temb, len(temb))
        return prompt * (1 + scale) + shift

    def feed_forward(self) -> torch.Tensor:
        shift, scale, gate = self.modulation[3:6]
        self.stream.add(self.part("ff")(self.stream.normed(self.part("norm3"), scale, shift)), gate)
        return self.stream.total()


def modulation(table: torch.Tensor, temb: torch.Tensor) -> tuple:
    """A pair for every row of the table `[P, D]`, of temb `[B, 1 or N, P D]`; they stay unsummed."""
    return tuple(
        zip(table.to(temb.device).unbind(0), temb.unflatten(2, (len(table), -1)).unbind(2), strict=True)
    )


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: LTX2VideoTransformerBlock,
        hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 1 or N, 6 D], or 9 D with a modulation of prompt attention
        temb_audio: torch.Tensor,
        temb_ca_scale_shift: torch.Tensor,
        temb_ca_audio_scale_shift: torch.Tensor,
        temb_ca_gate: torch.Tensor,
        temb_ca_audio_gate: torch.Tensor,
        temb_prompt: torch.Tensor | None = None,
        temb_prompt_audio: torch.Tensor | None = None,
        video_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        audio_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        ca_video_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        ca_audio_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        audio_encoder_attention_mask: torch.Tensor | None = None,
        self_attention_mask: torch.Tensor | None = None,
        audio_self_attention_mask: torch.Tensor | None = None,
        a2v_cross_attention_mask: torch.Tensor | None = None,
        v2a_cross_attention_mask: torch.Tensor | None = None,
        use_a2v_cross_attention: bool = True,
        use_v2a_cross_attention: bool = True,
        perturbation_mask: torch.Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        video = Modality(ops, self, "", hidden_states, temb)
        audio = Modality(ops, self, "audio_", audio_hidden_states, temb_audio)
        perturbation = {}
        if self.perturbed_attn:
            perturbation = {"perturbation_mask": perturbation_mask, "all_perturbed": all_perturbed}
        video.self_attention(video_rotary_emb, self_attention_mask, perturbation)
        audio.self_attention(audio_rotary_emb, audio_self_attention_mask, perturbation)
        video.prompt_attention(encoder_hidden_states, temb_prompt, encoder_attention_mask)
        audio.prompt_attention(audio_encoder_hidden_states, temb_prompt_audio, audio_encoder_attention_mask)
        exchange(
            self,
            (video.stream, audio.stream),
            (temb_ca_scale_shift, temb_ca_audio_scale_shift),
            (temb_ca_gate, temb_ca_audio_gate),
            (ca_video_rotary_emb, ca_audio_rotary_emb),
            (a2v_cross_attention_mask, v2a_cross_attention_mask),
            (use_a2v_cross_attention, use_v2a_cross_attention),
        )
        return video.feed_forward(), audio.feed_forward()

    return forward


def exchange(
    block: LTX2VideoTransformerBlock, streams, scale_shifts, gates, rotary_embs, masks, used
) -> None:
    """Attention of the picture to the sound, and of the sound to the picture: of all arguments, the picture's first.

    Both read both streams as they are before either branch is added.
    """
    tables = block.video_a2v_cross_attn_scale_shift_table, block.audio_a2v_cross_attn_scale_shift_table
    norms = block.audio_to_video_norm, block.video_to_audio_norm
    attentions = block.audio_to_video_attn, block.video_to_audio_attn
    modulations = [modulation(table[:4], temb) for table, temb in zip(tables, scale_shifts, strict=True)]
    branches = {}
    for to in (0, 1):
        if used[to]:
            pairs = (mods[2 * to : 2 * to + 2] for mods in modulations)  # scale and shift
            normed = [s.normed(norm, *pair) for s, norm, pair in zip(streams, norms, pairs, strict=True)]
            ropes = rotary_embs[to], rotary_embs[1 - to]
            branches[to] = attentions[to](normed[to], normed[1 - to], masks[to], *ropes)
    for to, branch in branches.items():
        (gate,) = modulation(tables[to][4:], gates[to])
        streams[to].add(branch, gate)


class FusedLTX2AttnProcessor(FusedProcessor):
    """`LTX2AudioVideoAttnProcessor` and `LTX2PerturbedAttnProcessor`.

    Tables are those of `half_tables` where neighbours are turned, and where halves are, a rope's own.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        key_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        perturbation_mask: torch.Tensor | None = None,  # 0 where attention is left out
        all_perturbed: bool | None = None,
    ) -> torch.Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        value = attn.to_v(seen)
        if all_perturbed is None:
            all_perturbed = perturbation_mask is not None and torch.all(perturbation_mask == 0)
        if all_perturbed:
            branch = value
        else:
            query, key = attn.to_q(hidden_states), attn.to_k(seen)
            norms, tables, rope = (attn.norm_q, attn.norm_k), *laid_out(attn, query_rotary_emb)
            if encoder_hidden_states is None:
                query, key = self.normed(attn, query, key, "rms_full", norms, tables, **rope)
            else:
                query = self.normed_alone(attn, query, "rms_full", norms[0], tables, **rope)
                if tables is not None and key_rotary_emb is not None:
                    tables, rope = laid_out(attn, key_rotary_emb)
                key = self.normed_alone(attn, key, "rms_full", norms[1], tables, **rope)
            branch = self.attend(attn, query, key, value, mask_of_heads(attn, attention_mask, seen))
            if perturbation_mask is not None:
                branch = torch.lerp(value, branch, perturbation_mask)
        branch = self.gated(attn, branch, hidden_states)
        return attn.to_out[1](attn.to_out[0](branch))

    def gated(self, attn: nn.Module, branch: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return branch


class GatedLTX2AttnProcessor(FusedLTX2AttnProcessor):
    """The same with a gate on each head, as LTX-2.3 has it."""

    def gated(self, attn: nn.Module, branch: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ops.gate_heads(branch, attn.to_gate_logits(hidden_states))


def laid_out(attn: nn.Module, tables) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, dict]:
    """Both tables `[B, N, heads, half a head]`, and what the op is told of them.

    A table of halves says how many heads there are: those of `cross_attn_rope` are the picture's, not the attention's.
    """
    if tables is None:
        return None, {}
    if attn.rope_type == "interleaved":
        return tuple(table.unflatten(2, (attn.heads, -1)) for table in tables), {}
    tables = tuple(table.transpose(1, 2) for table in tables)  # as they lie in memory
    return tables, {"rope": "halves", "num_heads": tables[0].shape[2]}
