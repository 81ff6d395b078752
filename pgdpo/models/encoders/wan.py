"""VAE, text encoder and image encoder of a Wan pipeline, as `prepare` and `evaluate` use them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import diffusers, no_grad, torch, transformers
from pgdpo.models.protocols import Conditioning

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKLWan, DiffusionPipeline, WanPipeline

    from pgdpo.models.encoders.tiling import Way

TEXT_LENGTH = 512  # WanPipeline.__call__'s max_sequence_length


class WanEncoders(PipelineEncoders):
    readers = (
        TextReader(
            "UMT5", TEXT_LENGTH, clean=lambda text: diffusers.pipelines.wan.pipeline_wan.prompt_clean(text)
        ),
    )

    def __init__(self, family: VaeFamily, device: torch.device) -> None:
        super().__init__(family, device)
        if family.pictures:
            digest = family.fingerprint("image_encoder", "image_processor") if family.uses_clip else "vae"
            self.fingerprint += f":image:{digest}"
            self.parts["clips"]["image"] = digest
        if -1 in family.pictures:
            self.fingerprint += ":last_image"
            self.parts["clips"]["last_image"] = digest

    def embed(self, pipeline: WanPipeline, prompts: list[str]) -> list[Conditioning]:
        embeddings, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=self.device,
        )
        # The pipeline pads with zero rows behind the last token; they are not stored.
        lengths = [int(row.abs().sum(-1).nonzero().max()) + 1 for row in embeddings]
        return [{"prompt": row[:n]} for row, n in zip(embeddings, lengths, strict=True)]

    @no_grad
    def encode_images(self, pictures: dict[int, np.ndarray], num_frames: int, prompt: str) -> Conditioning:
        """`image_latents` `[C, F, H, W]`: of a clip of the image (and the last frame, where one is given) and grey
        frames, or of the image alone (F = 1) where it is the model's first latent frame; `image_embeds` `[tokens, D]`,
        of both frames `[2, tokens, D]`, where the model attends to them. By the pipeline's own `prepare_latents` and
        `encode_image`.
        """
        from PIL import Image

        images = [Image.fromarray(pictures[frame]) for frame in self.pictures]
        height, width = pictures[0].shape[:2]
        vae = self.open_vae((num_frames, height, width), "encoded")  # as the clips that it stands beside
        expand = self.family.expand_timesteps
        pipeline = diffusers.WanImageToVideoPipeline(
            None, None, vae, None, **self._clip, expand_timesteps=expand
        )
        pixels = [
            pipeline.video_processor.preprocess(image, height=height, width=width).to(
                self.device, torch.float32
            )
            for image in images
        ]
        channels = vae.config.z_dim
        _, condition, *_ = pipeline.prepare_latents(
            pixels[0],
            1,
            channels,
            height,
            width,
            num_frames,
            torch.float32,
            self.device,
            latents=torch.empty(0),  # the noise is drawn in training
            last_image=pixels[-1] if len(pixels) > 1 else None,
        )
        found = {"image_latents": condition[0, -channels:]}  # the mask before them follows from the shape
        if self._clip:
            states = pipeline.encode_image(images, self.device)
            found["image_embeds"] = states if len(images) > 1 else states[0]
        return {name: tensor.float().cpu() for name, tensor in found.items()}

    def normalize(self, vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
        mean, std = _statistics(vae)
        return (latents - mean) / std

    def decode(self, vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
        mean, std = _statistics(vae)
        return vae.decode(latents * std + mean, return_dict=False)[0]

    def release(self) -> None:
        self.__dict__.pop("_clip", None)
        super().release()

    def largest_tile(self, way: Way) -> tuple[int, int]:
        """Wan 2.2 5B's VAE joins pixels into patches first and cuts these: its strides are in patches."""
        vae, (height, width) = self.family.meta_vae, super().largest_tile(way)
        patch = vae.config.patch_size if way == "encoded" else None
        if patch is None:
            return height, width
        strides = vae.tile_sample_stride_height, vae.tile_sample_stride_width
        return max(height, patch * strides[0]), max(width, patch * strides[1])

    def _load_text(self) -> DiffusionPipeline:
        pipeline = self.family.pipeline_class
        parts = dict.fromkeys(("transformer", "vae", "scheduler", *pipeline._optional_components))
        self.family.fetch(*self.text_parts)
        return pipeline.from_pretrained(self.family.source, **parts, torch_dtype=self.text_dtype).to(
            self.device
        )

    @functools.cached_property
    def _clip(self) -> dict:
        """Wan 2.1's image encoder; it stays beside the VAE, since each pair needs both."""
        if not self.family.uses_clip:
            return {}
        self.family.fetch("image_encoder")
        source = self.family.source
        encoder = transformers.CLIPVisionModel.from_pretrained(
            source, subfolder="image_encoder", dtype=torch.float32
        )
        return {
            "image_processor": transformers.CLIPImageProcessor.from_pretrained(
                source, subfolder="image_processor"
            ),
            "image_encoder": encoder.to(self.device).eval(),
        }


def _statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, vae.config.z_dim, 1, 1, 1)
    make = lambda values: torch.tensor(values, device=vae.device, dtype=vae.dtype).view(shape)  # noqa: E731
    return make(vae.config.latents_mean), make(vae.config.latents_std)
