"""What stands in an LTX-2 pipeline for the parts that nothing goes through while it samples: text comes connected,
noise and latents come as the transformer has them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pgdpo.models.later import torch

if TYPE_CHECKING:
    from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel


def isolate(transformer, arguments: tuple, told: dict) -> tuple[tuple, dict]:
    """A forward pre-hook: the streams don't look at each other."""
    return arguments, told | {"isolate_modalities": True}


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
