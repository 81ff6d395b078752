"""Latents as something to look at and to listen to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.diffusion.streams import AUDIO, VIDEO, by_stream

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pgdpo.models.protocols import Encoders
    from pgdpo.video import Sound


def decode(encoders: Encoders, latents: Tensor | dict[str, Tensor]) -> tuple[np.ndarray, Sound | None]:
    """One clip's latents, `[C, F, H, W]` or a mapping by stream -> (uint8 frames `[F, H, W, 3]`, their sound; None of
    latents without)."""
    streams = by_stream(latents)
    frames = encoders.decode_video(streams[VIDEO])
    return frames, encoders.decode_audio(streams[AUDIO]) if AUDIO in streams else None
