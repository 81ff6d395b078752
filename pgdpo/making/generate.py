"""Clips by the model: from noise, from a re-noised real clip, or inside a box of one (flow matching).

DenseDPO (arXiv 2506.03517) re-noises one real clip part of the way and denoises it with two seeds: both clips keep its
motion and are compared segment by segment. LocalDPO regenerates a region of a real clip and leaves the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from pgdpo.config import Config, families, family_class, sample_settings
from pgdpo.data.prepared import padded_text, pair_hash
from pgdpo.data.visits.loading import stack_conditioning, to_device
from pgdpo.diffusion.streams import AUDIO, VIDEO, Latents, each, seed_of
from pgdpo.engine.policy import build_policy
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.models import open_family
from pgdpo.models.encoders.decode import decode
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning, Encoders
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.sampling.denoise import at_level, denoise
from pgdpo.video import Sound
from pgdpo_kernels import pair_noise


class Generator:
    """The configured model, whole, with its encoders: `prompts` and frames in, frames out, and sound of new clips.

    Raises InputError for a model family that does not predict the velocity of flow matching, or wants an image.
    """

    def __init__(self, config: Config, prompts: list[str], device: torch.device) -> None:
        self.config, self.device = config, device
        plain = config.model_copy(update={"model": config.model.model_copy(update={"adapter": None})})
        self.family: Family = open_family(plain.model)
        if self.family.prediction != "flow":
            flow = [name for name in families() if family_class(name).prediction == "flow"]
            raise InputError(
                f"model.family is {config.model.family}: it predicts {self.family.prediction}; clips are made by "
                f"models of flow matching: {', '.join(flow)}"
            )
        self.family.check_fps(config.data)
        self.encoders: Encoders = self.family.load_encoders(device)
        if self.encoders.pictures:
            raise InputError("model.path is an image-to-video model: clips are made by text-to-video models")
        self.settings = sample_settings(
            config.evaluate, self.family.sampling((config.data.height, config.data.width))
        )
        if (
            self.settings.flow_shift is None
        ):  # its scheduler shifts in a way of its own; the steps here, as training does
            self.settings = replace(self.settings, flow_shift=config.diffusion.shift)
        say(f"clips are made with {self.settings}")
        # All prompts first: the text encoder is never in memory with VAE or transformer, and loading it takes long.
        # One by one: an embedding must not hang on which others a rank needs.
        self._text = {
            prompt: self._embedded(prompt) for prompt in sorted({*prompts, self.settings.negative_prompt})
        }
        self.encoders.release()
        self.transformer = build_policy(plain, device, forward_only=True)[1]
        held = sum(p.numel() * p.element_size() for p in self.transformer.parameters())
        say(f"each process holds the whole model: {held / 1e9:.3g} GB in {compute_dtype(config)}")

    def from_noise(
        self, name: str, prompt: str, draw: int, *, silent: bool = False
    ) -> tuple[np.ndarray, Sound | None]:
        """A clip for the prompt, uint8 `[F, H, W, 3]`, with sound if the model makes some and it is not to be
        `silent`; (seed, name, draw) fix its noise."""
        data = self.config.data
        shapes = self.family.stream_shapes(data.num_frames, data.height, data.width)
        noise = {
            stream: self._noise(name, draw, shapes[stream], stream)
            for stream in ((VIDEO,) if silent else self.family.streams)
        }
        made = self._denoise(noise if len(noise) > 1 else noise[VIDEO], 1.0, prompt)
        return decode(self.encoders, each(torch.Tensor.cpu, made))

    def through_vae(self, frames: np.ndarray, sound: Sound | None) -> tuple[np.ndarray, Sound | None]:
        """A real clip and its sound, in the format of `encoders.sound`, with what the VAEs lose of both."""
        latents = {VIDEO: self.encoders.encode_video(frames)}
        if sound is not None:
            latents[AUDIO] = self.encoders.encode_audio(sound, len(frames))
        return decode(self.encoders, latents)

    def from_clip(self, name: str, frames: np.ndarray, prompt: str, sigma: float, draw: int) -> np.ndarray:
        """`frames` re-noised up to `sigma` and denoised for the prompt."""
        latents = self.encoders.encode_video(frames).to(self.device)
        noise = self._noise(name, draw, latents.shape)
        return self._decode(self._denoise(at_level(latents, noise, sigma), sigma, prompt))

    def inside(
        self, name: str, frames: np.ndarray, prompt: str, sigma: float, draw: int, box: tuple[slice, slice]
    ) -> np.ndarray:
        """As `from_clip`, inside a box of latent rows and columns; outside the real clip's latents stay.

        What is outside stands at the level of each step, so that the model makes the box to match it (RePaint, arXiv
        2201.09865, along flow matching's straight paths); at the last one it is the clip itself.
        """
        latents = self.encoders.encode_video(frames).to(self.device)
        noise = self._noise(name, draw, latents.shape)

        def outside(made: torch.Tensor, level: float) -> torch.Tensor:
            mixed = at_level(latents, noise, level)
            mixed[(..., *box)] = made[(..., *box)]
            return mixed

        return self._decode(self._denoise(at_level(latents, noise, sigma), sigma, prompt, outside))

    def _noise(self, name: str, draw: int, shape: tuple[int, ...], stream: str = VIDEO) -> torch.Tensor:
        keys = {"pair_ids": torch.tensor([pair_hash(name)]), "draw": torch.tensor([draw])}
        keys = {key: value.to(self.device) for key, value in keys.items()}
        return pair_noise(
            (1, *shape),
            seed=seed_of(self.config.make.seed, stream),
            device=self.device,
            dtype=torch.float32,
            **keys,
        )[0]

    def _denoise(
        self, latents: Latents, sigma: float, prompt: str, step_end: Callable | None = None
    ) -> Latents:
        texts = self._condition(prompt), self._condition(self.settings.negative_prompt)
        how = {"dtype": compute_dtype(self.config), "step_end": step_end}
        return denoise(self.family, self.transformer, latents, sigma, *texts, self.settings, **how)

    def _embedded(self, prompt: str) -> Conditioning:
        (text,) = self.encoders.encode_prompts([prompt])
        moved("encoding prompts")
        return padded_text(text, self.encoders.text_length)

    def _condition(self, prompt: str) -> Conditioning:
        return to_device(self.family.trimmed(stack_conditioning([self._text[prompt]])), self.device)

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        return self.encoders.decode_video(latents.cpu())
