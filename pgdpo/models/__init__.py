"""One module per model family, each with the same functions (see `wan.py`)."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Protocol

import numpy as np
import torch

_FAMILIES = {"wan": "pgdpo.models.wan"}


def family(name: str) -> ModuleType:
    """The module of a model family: `load_transformer, load_encoders, predict, sample, save_adapter`."""
    return importlib.import_module(_FAMILIES[name])


class Encoders(Protocol):
    """What `prepare` needs of a VAE and a text encoder, and `evaluate` to look at latents."""

    text_length: int  # tokens that prompt embeddings are zero-padded to
    fingerprint: str  # changes when the same clip or prompt would be encoded differently

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """Raises InputError, naming the nearest sizes that fit."""

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        """Prompts -> fp32 embeddings `[L, D]` each, L <= text_length, without padding."""

    def encode_video(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 `[F, H, W, 3]` -> normalised fp32 latents `[C, F', H', W']`."""

    def decode_video(self, latents: torch.Tensor) -> np.ndarray:
        """Normalised latents `[C, F', H', W']` -> uint8 `[F, H, W, 3]`."""
