"""What stands in an LTX-2 pipeline for the parts that nothing goes through while it samples: text comes connected,
noise and latents come as the transformer has them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from pgdpo.models.later import torch


def isolate(transformer, arguments: tuple, told: dict) -> tuple[tuple, dict]:
    """A forward pre-hook: the streams don't look at each other."""
    return arguments, told | {"isolate_modalities": True}


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
