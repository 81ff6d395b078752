"""Where the toy configuration stands in for a VAE and a text encoder, so that nothing is downloaded."""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar

import numpy as np
import torch

from pgdpo.messages.errors import InputError
from pgdpo.toy import spectrum
from pgdpo.video.sound import Sound, SoundFormat

PATCH = 4  # pixels on a side that become channels
TEXT_DIM = 64
TEXT_LENGTH = 8

# Mean and spread of the toy clips' pixels in [-1, 1]: mostly dark background, a bright shape.
PIXEL_MEAN = -0.75
PIXEL_STD = 0.3


class ToyEncoders:
    """A lossless patch codec (space to depth), hashed words (a fixed random vector per word) and, where there is sound,
    the strength of its harmonics (`spectrum.py`)."""

    text_length, text_dim = TEXT_LENGTH, TEXT_DIM
    latent_channels = 3 * PATCH * PATCH
    sound_channels = spectrum.HARMONICS * spectrum.PITCHES
    text_dtype = torch.float32
    pictures = ()
    tiling = None
    sound: SoundFormat | None = None
    readers = ()  # nothing is cut: a prompt of too many words is refused
    fingerprint = f"toy:patch{PATCH}:{PIXEL_MEAN}:{PIXEL_STD}:words{TEXT_DIM}x{TEXT_LENGTH}"

    parts: ClassVar[dict[str, dict[str, str]]] = {
        "clips": {"patch codec": f"{PATCH}:{PIXEL_MEAN}:{PIXEL_STD}"},
        "text": {"hashed words": f"{TEXT_DIM}x{TEXT_LENGTH}"},
    }

    def __init__(self, *, sounding: bool = False) -> None:
        if sounding:
            self.sound = SoundFormat(spectrum.RATE, 1)
            self.fingerprint = f"{self.fingerprint}:{spectrum.FINGERPRINT}"
            self.parts = {**self.parts, "clips": {**self.parts["clips"], "harmonics": spectrum.FINGERPRINT}}

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        step = PATCH
        for key, value in (("height", height), ("width", width)):
            if value % step:
                low = value // step * step
                raise InputError(
                    f"data.{key} is {value}; allowed are multiples of {step}: {low} or {low + step}"
                )

    def clip_to_latents(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return self.latent_channels, num_frames, height // PATCH, width // PATCH

    def encode_video(self, frames: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(frames).float() / 127.5 - 1
        f, h, w, _ = pixels.shape
        blocks = pixels.view(f, h // PATCH, PATCH, w // PATCH, PATCH, 3)
        latents = blocks.permute(5, 2, 4, 0, 1, 3).reshape(3 * PATCH * PATCH, f, h // PATCH, w // PATCH)
        return (latents - PIXEL_MEAN) / PIXEL_STD

    def decode_video(self, latents: torch.Tensor) -> np.ndarray:
        _, f, h, w = latents.shape
        blocks = (latents.float() * PIXEL_STD + PIXEL_MEAN).view(3, PATCH, PATCH, f, h, w)
        pixels = blocks.permute(3, 4, 1, 5, 2, 0).reshape(f, h * PATCH, w * PATCH, 3)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    def sound_to_latents(self, num_frames: int) -> tuple[int, int, int]:
        return spectrum.audio_shape(num_frames)

    def encode_audio(self, sound: Sound, num_frames: int) -> torch.Tensor:
        return spectrum.encode(sound, num_frames)

    def decode_audio(self, latents: torch.Tensor) -> Sound:
        return spectrum.decode(latents.float().cpu())

    def check_prompt(self, prompt: str) -> None:
        """Raises InputError for more different words than fit."""
        _words(prompt)

    def encode_prompts(self, prompts: list[str]) -> list[dict[str, torch.Tensor]]:
        return [{"prompt": self._encode(prompt)} for prompt in prompts]

    def release(self) -> None:
        """Nothing is ever loaded."""

    def _encode(self, prompt: str) -> torch.Tensor:
        return torch.stack([_word_vector(word) for word in _words(prompt)])


def _words(prompt: str) -> list[str]:
    words = sorted(set(re.findall(r"\w+", prompt.lower()))) or [""]
    if len(words) > TEXT_LENGTH:
        raise InputError(
            f"prompt {prompt!r} has {len(words)} different words; the toy's encoder takes {TEXT_LENGTH}"
        )
    return words


def _word_vector(word: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return torch.from_numpy(
        np.random.Generator(np.random.Philox(seed)).standard_normal(TEXT_DIM, dtype=np.float32)
    )
