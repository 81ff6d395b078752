"""VAE and text encoders of a diffusers pipeline, as `prepare` and `evaluate` use them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar

from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.family import Family
from pgdpo.models.later import diffusers, no_grad, torch, transformers
from pgdpo.models.protocols import Conditioning
from pgdpo.models.weights.held import OneAtATime

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline, ModelMixin
    from transformers import PreTrainedTokenizerBase

    from pgdpo.models.encoders.tiling import Size, Way
    from pgdpo.video import SoundFormat


class VaeFamily(Family):
    """A family whose pipeline has a causal video VAE: k * temporal + 1 frames make k + 1 latent frames."""

    vae_class: type
    encoders_class: type

    def vae_factors(self, vae: ModelMixin) -> tuple[int, int]:
        """Frames, and pixels on a side, that make one of this VAE's latents."""
        return vae.temporal_compression_ratio, vae.spatial_compression_ratio

    @functools.cached_property
    def meta_vae(self) -> ModelMixin:
        """The folder's VAE on the meta device: without its weights."""
        with torch.device("meta"):
            vae = self.vae_class.from_config(self.vae_class.load_config(self.source, subfolder="vae"))
        return vae.eval()

    @property
    def vae_shape(self) -> tuple[int, int, int]:
        """(latent channels, frames, pixels on a side) of the folder's VAE."""
        return self.meta_vae.config.latent_channels, *self.vae_factors(self.meta_vae)

    def clip_to_latents(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        channels, temporal, spatial = self.vae_shape
        return channels, self.lead + (num_frames - 1) // temporal + 1, height // spatial, width // spatial

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """Raises InputError, naming the nearest sizes, unless VAE and transformer take such a clip."""
        _, temporal, spatial = self.vae_shape
        check_multiples(num_frames, height, width, spatial=spatial * self.patch[1], temporal=temporal)

    def clip_size(self, latent_shape: tuple[int, ...]) -> Size:
        """Frames, height and width of the clips whose latents are `(C, F, H, W)`."""
        _, temporal, spatial = self.vae_shape
        _, frames, height, width = latent_shape
        return (frames - self.lead - 1) * temporal + 1, height * spatial, width * spatial

    def pipeline_encoders(self, device: torch.device) -> PipelineEncoders:
        return self.encoders_class(self, device)


class PipelineEncoders:
    """VAE and text encoders of one pipeline; each is loaded when first used and only one is held.

    A subclass says how its pipeline embeds prompts and normalises latents.
    """

    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    other_parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "scheduler")  # no prompt needs them
    readers: tuple[TextReader, ...]
    sound: SoundFormat | None = None

    def __init__(self, family: VaeFamily, device: torch.device) -> None:
        from pgdpo.models.encoders.tiling import Tiling

        self.family = family
        self.device = device
        self.text_length = family.text_length
        self.pictures = family.pictures
        self.text_dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.check_size = family.check_size
        self.tiling = Tiling(self)
        self._parts = OneAtATime()
        digest = family.fingerprint("vae", *self.text_parts)
        self.fingerprint = f"{family.model.family}:{digest}:text{self.text_length}"
        shared, digests = {"model.family": family.model.family}, family.fingerprint
        self.parts = {
            "clips": {**shared, "vae": digests("vae")},
            "text": {
                **shared,
                "text_length": str(self.text_length),
                **{part: digests(part) for part in self.text_parts},
            },
        }

    def load_tokenizer(self, folder: str) -> PreTrainedTokenizerBase:
        """The pipeline's tokenizer in that folder."""
        return transformers.AutoTokenizer.from_pretrained(
            self.family.source, subfolder=folder, trust_remote_code=False
        )

    @no_grad
    def encode_prompts(self, prompts: list[str]) -> list[Conditioning]:
        embedded = self.embed(self._parts.get("text", self._load_text), prompts)
        return [{name: tensor.cpu() for name, tensor in item.items()} for item in embedded]

    @no_grad
    def encode_video(self, frames: np.ndarray) -> torch.Tensor:
        vae = self.open_vae(frames.shape[:3], "encoded")
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(self.device, vae.dtype) / 127.5 - 1
        return self.encode(vae, pixels)[0].float().cpu()

    @no_grad
    def decode_video(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.open_vae(self.family.clip_size(latents.shape), "decoded")
        video = self.decode(vae, latents[None].to(self.device, vae.dtype))
        frames = diffusers.video_processor.VideoProcessor().postprocess_video(video, output_type="np")[0]
        return (frames * 255).round().astype("uint8")

    def decode_images(self, latents: torch.Tensor) -> np.ndarray:
        return self.decode_video(latents)

    def release(self) -> None:
        self._parts.drop_others()

    def embed(self, pipeline: DiffusionPipeline, prompts: list[str]) -> list[Conditioning]:
        """Conditioning of each prompt by the pipeline's own `encode_prompt`."""
        raise NotImplementedError

    def encode(self, vae: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels `[1, 3, F, H, W]` -> what the transformer sees."""
        return self.normalize(vae, vae.encode(pixels).latent_dist.mode())

    def normalize(self, vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's latents `[1, C, F, H, W]` -> what the transformer sees: the pipeline's scaling factor."""
        return latents * vae.config.scaling_factor

    def decode(self, vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
        """What the transformer sees -> pixels `[1, 3, F, H, W]`, as the pipeline decodes."""
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]

    def _load_text(self) -> DiffusionPipeline:
        parts = dict.fromkeys(self.other_parts)
        self.family.fetch(*self.text_parts)
        pipeline = self.family.pipeline_class
        return pipeline.from_pretrained(self.family.source, **parts, torch_dtype=self.text_dtype).to(
            self.device
        )

    def largest_tile(self, way: Way) -> tuple[int, int]:
        """Height and width in pixels up to which the VAE, set to tiling, makes one tile of a clip."""
        vae = self.family.meta_vae
        return vae.tile_sample_min_height, vae.tile_sample_min_width

    def load_beside(self, way: Way) -> None:
        """Load what stays in memory beside the VAE while clips go through it."""

    def open_vae(self, size: Size, way: Way) -> ModelMixin:
        """The VAE, set for clips of this size: whole or in tiles."""
        self._parts.drop_others("vae")
        tiled = self.tiling.of(size, way)  # by the memory that is free beside what else is held
        vae = self._parts.get("vae", self._load_vae)
        (vae.enable_tiling if tiled else vae.disable_tiling)()
        return vae

    def _load_vae(self) -> ModelMixin:
        self.family.fetch("vae")
        # fp32: latents are made once and kept, so its time is paid once.
        vae = self.family.vae_class.from_pretrained(
            self.family.source, subfolder="vae", torch_dtype=torch.float32
        )
        return vae.to(self.device).eval()


def check_multiples(num_frames: int, height: int, width: int, *, spatial: int, temporal: int) -> None:
    """Raises InputError, naming the nearest sizes, unless height and width are multiples of `spatial` and the frames
    are a multiple of `temporal` plus 1."""
    for key, value in (("height", height), ("width", width)):
        if value % spatial:
            low = value // spatial * spatial
            options = f"{low} or {low + spatial}" if low else f"{spatial}"
            raise InputError(f"data.{key} is {value}; this VAE takes multiples of {spatial}: {options}")
    if num_frames % temporal != 1 % temporal:
        low = (num_frames - 1) // temporal * temporal + 1
        raise InputError(
            f"data.num_frames is {num_frames}; this VAE takes {temporal}k + 1 frames: {low} or {low + temporal}"
        )
