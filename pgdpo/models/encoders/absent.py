"""What stands for the parts of an LTX-2 pipeline that nothing goes through while it samples, where text comes connected
and latents come as the transformer has them; and for the transformer's positions, where it is behind an engine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pgdpo.models.later import diffusers, torch

if TYPE_CHECKING:
    from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel


# LTX2Pipeline.__call__'s defaults beside `guidance_scale`, which is the picture's, and what leaves all guidance out: of
# the picture, and under names that begin with `audio_` of the sound.
SCALES = {"stg_scale": (1.0, 0.0), "modality_scale": (3.0, 1.0), "guidance_rescale": (0.7, 0.0)}
AUDIO_GUIDANCE = 7.0
STG_BLOCKS = [28]


def guided(scale: float, *, isolated: bool, toy: bool) -> dict:
    """The pipeline's arguments that say how it is guided, beside the picture's `guidance_scale`, which is given.

    Args:
        isolated: without sound.
        toy: of the toy's model, which is guided by `scale` alone, the sound as the picture.
    """
    of_card = scale > 1 and not toy
    scales = {name: card if of_card else none for name, (card, none) in SCALES.items()}
    if isolated:  # what stands apart already
        scales["modality_scale"] = 1.0
    return {
        **scales,
        **{f"audio_{name}": value for name, value in scales.items()},
        "audio_guidance_scale": AUDIO_GUIDANCE if of_card and not isolated else scale,
        "spatio_temporal_guidance_blocks": STG_BLOCKS,
    }


def isolate(transformer, arguments: tuple, told: dict) -> tuple[tuple, dict]:
    """A forward pre-hook: the streams don't look at each other."""
    return arguments, told | {"isolate_modalities": True}


def ropes_of(architecture: dict) -> tuple:
    """What has the positions of picture and sound, as the transformer's own `rope` and `audio_rope` do."""
    rope = functools.partial(
        diffusers.models.transformers.transformer_ltx2.LTX2AudioVideoRotaryPosEmbed,
        dim=architecture["attention_head_dim"],
        causal_offset=architecture["causal_offset"],
    )
    video = rope(
        patch_size=architecture["patch_size"],
        patch_size_t=architecture["patch_size_t"],
        scale_factors=architecture["vae_scale_factors"],
    )
    audio = rope(
        patch_size=architecture["audio_patch_size"],
        patch_size_t=architecture["audio_patch_size_t"],
        sampling_rate=architecture["audio_sampling_rate"],
        hop_length=architecture["audio_hop_length"],
        scale_factors=[architecture["audio_scale_factor"]],
        modality="audio",
    )
    return video, audio


def pipeline_around(
    transformer: LTX2VideoTransformer3DModel,
    pipeline_class: type[LTX2Pipeline],
    scheduler,
    *,
    factors: tuple[int, int],
    text_widths: tuple[int, int],
    bins: int,
) -> LTX2Pipeline:
    """The pipeline around the transformer, in which nothing is encoded and nothing decoded.

    Args:
        factors: frames, and pixels on a side, of a latent.
        text_widths: of the text of picture and sound.
        bins: the sound's M.
    """
    # The rates are read, and not used.
    sound = SimpleNamespace(sample_rate=1, mel_hop_length=1, mel_bins=bins, latent_channels=1)
    pipeline = pipeline_class(
        scheduler=scheduler,
        vae=Vae(SimpleNamespace(scaling_factor=1.0), *factors),
        audio_vae=Vae(sound),
        text_encoder=None,
        tokenizer=None,
        connectors=Connected(text_widths),
        transformer=transformer,
        vocoder=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Vae:
    """All that the pipelines ask of a VAE that nothing goes through; what they normalise by it stays, to the bit."""

    config: SimpleNamespace
    temporal_compression_ratio: int = 1
    spatial_compression_ratio: int = 1
    mel_compression_ratio: int = 1
    latents_mean = property(lambda self: torch.zeros(1))
    latents_std = property(lambda self: torch.ones(1))


@dataclass(frozen=True)
class Connected:
    """In the place of the connectors: parts the text of picture and sound, which they made and `_texts` joined."""

    widths: tuple[int, int]

    def __call__(self, text: torch.Tensor, mask: torch.Tensor, padding_side: str) -> tuple[torch.Tensor, ...]:
        return *text.split(self.widths, dim=-1), mask
