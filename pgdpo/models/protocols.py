"""What families and encoders are to each other and to the trainer: conditioning, encoders, how tokens are shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from pgdpo.models.encoders.text import TextReader
    from pgdpo.models.encoders.tiling import Tiling
    from pgdpo.video import Sound, SoundFormat

Conditioning = dict[str, "torch.Tensor"]


class Encoders(Protocol):
    """What `prepare` needs of a VAE and a text encoder, and `evaluate` to look at latents."""

    text_length: int  # tokens that `prompt` is zero-padded to
    text_dtype: (
        torch.dtype
    )  # that prompts are embedded in; set before the first one, they are embedded in that
    fingerprint: str  # changes when the same clip or prompt would be encoded differently
    parts: dict[str, dict[str, str]]  # what latents (`clips`) and embeddings (`text`) follow from, by name
    pictures: tuple[
        int, ...
    ]  # frames of the clip that the model is given beside the prompt: 0 the first, -1 the last
    readers: tuple[TextReader, ...]  # the text encoders that cut a long prompt
    tiling: Tiling | None  # which clips go through the VAE in tiles; None: of none it makes any
    sound: SoundFormat | None  # the waveforms that `encode_audio` takes; None: the model's clips are silent

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """Raises InputError, naming the nearest sizes that fit."""

    def load_tokenizer(self, folder: str) -> PreTrainedTokenizerBase:
        """The tokenizer of one of `readers`."""

    def encode_prompts(self, prompts: list[str]) -> list[Conditioning]:
        """Conditioning of each prompt, without a batch axis: `prompt` `[L, D]` with L <= text_length, without
        padding, and what else the family wants, of one shape for all prompts; as computed, in `text_dtype`."""

    def encode_images(self, pictures: dict[int, np.ndarray], num_frames: int, prompt: str) -> Conditioning:
        """Frame -> uint8 `[H, W, 3]`, of all `pictures` -> their conditioning, without a batch axis: what the family's
        `image_names` name. It stands before what `encode_prompts` gives under the same name, for a text encoder that
        sees the picture. Asked where there are `pictures`."""

    def decode_images(self, latents: torch.Tensor) -> np.ndarray:
        """`image_latents` of the clips' kind `[C, F', H', W']` -> uint8 frames `[F, H, W, 3]`, to be looked at."""

    def encode_video(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 `[F, H, W, 3]` -> normalised fp32 latents `[C, F', H', W']`."""

    def decode_video(self, latents: torch.Tensor) -> np.ndarray:
        """Normalised latents `[C, F', H', W']` -> uint8 `[F, H, W, 3]`."""

    def encode_audio(self, sound: Sound, num_frames: int) -> torch.Tensor:
        """The sound of a clip of that many frames, in the format of `sound` -> normalised fp32 latents `[C, L, M]`, as
        long as the family's `stream_shapes` say. Asked where there is `sound`."""

    def decode_audio(self, latents: torch.Tensor) -> Sound:
        """Normalised latents `[C, L, M]` -> sound, at the rate that the pipeline makes."""

    def release(self) -> None:
        """Let go of what is loaded; what is asked for later is loaded again."""


@dataclass(frozen=True)
class Tokens:
    """One stream's tokens, which ranks share: the picture's, or those of the sound beside it."""

    attention: str  # a block's attention among all of them
    arguments: dict[str, int]  # of the transformer, that go by tokens: name -> dim of the tokens
    ropes: dict[str, int]  # modules of the transformer that make its rotary tables: name -> dim of the tokens
    hidden_states: str = "hidden_states"  # the block's argument
    output: str = "proj_out"  # the transformer's last projection
    heads: str = "num_attention_heads"  # in the transformer's configuration


@dataclass(frozen=True)
class TokenSharing:
    """Where ranks can share a clip's tokens (sequence parallelism, `engine/ulysses.py`).

    The hidden states of each stream, which are a block's first arguments in this order, are split before the first
    block, and its outputs gathered. What lies between must compute each token by itself, but for the attention that is
    named here and cross-attention to text.
    """

    blocks: tuple[str, ...]  # lists of blocks, in the order of the forward
    streams: dict[str, Tokens]  # by name, `video` the first
    # A block's attention from one stream's tokens to another's: name -> (stream of the queries, of keys and values).
    across: dict[str, tuple[str, str]] = field(default_factory=dict)
    apart: str | None = None  # the transformer's argument that leaves these out, as for clips without sound
    first_frame: int | None = None  # where a block's arguments have the number of the first frame's tokens
    text_first: bool = False  # where text and video attend together: the text stands before the video
    processor: type | None = (
        None  # stands in for diffusers' own where that does not ask diffusers' dispatcher
    )

    @property
    def attentions(self) -> dict[str, tuple[str, str]]:
        """All of a block's attention that is shared, as `across`."""
        return {tokens.attention: (name, name) for name, tokens in self.streams.items()} | self.across
