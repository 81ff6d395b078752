"""LTX-Video text-to-video, as diffusers has it (LTXVideoTransformer3DModel, T5; arXiv 2501.00103).

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma. The
transformer takes packed tokens; its rotary positions are in pixels and seconds, so it is told the frame rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from pgdpo.config.families import SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import Diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, TokenSharing
from pgdpo.models.steps import step_told

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    from pgdpo.config import DataConfig

TEXT_LENGTH = 128  # LTXPipeline.__call__'s max_sequence_length
# The example in diffusers' pipeline_ltx.py, and the model card of Lightricks/LTX-Video.
NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"

# The rows of `adapters/comfyui.py`.
LAYERS = (
    (r"(transformer_blocks\.\d+\..+)", r"\1"),
    (r"proj_in", "patchify_proj"),
    (r"proj_out", "proj_out"),
    (r"(caption_projection\..+)", r"\1"),
    (r"time_embed\.(.+)", r"adaln_single.\1"),
)


class LTXSettings(ModelConfig):
    frame_rate: float | None = Field(
        None, gt=0, description="ltx: frames a second that the model is told; by default the pipeline's, 25."
    )

    @property
    def fps(self) -> float:
        return super().fps if self.encoders == "toy" else self.frame_rate or super().fps


class LTXEncoders(PipelineEncoders):
    readers = (TextReader("T5", TEXT_LENGTH),)

    def embed(self, pipeline: LTXPipeline, prompts: list[str]) -> list[Conditioning]:
        """T5's states; padding stands behind the last token and the transformer masks it: it is not stored."""
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=self.device,
        )
        return [{"prompt": row[:n]} for row, n in zip(embeds, mask.sum(1).tolist(), strict=True)]

    def normalize(self, vae: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
        return self.family.pipeline_class._normalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )

    def decode(self, vae: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
        latents = self.family.pipeline_class._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        # LTXPipeline.__call__'s decode_timestep, at which no noise is added.
        timestep = latents.new_zeros(1) if vae.config.timestep_conditioning else None
        return vae.decode(latents, timestep, return_dict=False)[0]


class LTX(VaeFamily):
    settings = LTXSettings
    fps = 25.0  # a default of its pipeline
    rate_key = "model.frame_rate"
    # LTXPipeline.__call__'s defaults; its scheduler shifts by the number of tokens.
    cards = {"ltx": SampleSettings(50, 3.0, negative_prompt=NEGATIVE)}  # noqa: RUF012
    comfyui = LAYERS
    transformer_class = Diffusers("LTXVideoTransformer3DModel")
    pipeline_class = Diffusers("LTXPipeline")
    vae_class = Diffusers("AutoencoderKLLTXVideo")
    encoders_class = LTXEncoders
    text_length = TEXT_LENGTH
    masks_text = True
    masked_attention = "attn2"  # to text, which every rank has whole
    sharing = TokenSharing(blocks=("transformer_blocks",), attention="attn1", arguments={}, rope_dim=1)

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        self.frame_rate = model.fps
        self.told = (self.frame_rate,)

    def check_fps(self, data: DataConfig) -> None:
        if data.fps not in (None, "own", self.frame_rate):
            raise InputError(
                f"data.fps is {data.fps:g} and the model is told {self.frame_rate:g} frames a second "
                f"(model.frame_rate): set model.frame_rate to {data.fps:g} and leave data.fps out"
            )

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        return {
            "prompt": torch.empty(batch, self.text_length, self._architecture["caption_channels"]),
            "prompt_mask": torch.empty(batch, self.text_length, dtype=torch.bool),
        }

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        frames, height, width = noisy.shape[2:]
        _, temporal, spatial = self.vae_shape
        prediction = transformer(
            hidden_states=self._pack(noisy),
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            timestep=self.timestep(sigma),
            encoder_attention_mask=conditioning.get("prompt_mask"),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(temporal / self.frame_rate, spatial, spatial),
            return_dict=False,
        )[0]
        return self._unpack(prediction, noisy)

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        """`[N, C, F, H, W]` -> `[N, tokens, C p]`."""
        return self.pipeline_class._pack_latents(latents, *self._patches())

    def _unpack(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`_pack`, undone, to the shape of `like`."""
        sizes = [n // p for n, p in zip(like.shape[2:], self.patch, strict=True)]
        return self.pipeline_class._unpack_latents(tokens, *sizes, *self._patches())

    def _patches(self) -> tuple[int, int]:
        return self.patch[1], self.patch[0]

    @no_grad
    def sample(
        self,
        transformer: LTXVideoTransformer3DModel,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor:
        pipeline = self.pipeline_class(self.load_scheduler(how.flow_shift), None, None, None, transformer)
        pipeline.set_progress_bar_config(disable=True)
        _, temporal, spatial = self.vae_shape
        pipeline.vae_temporal_compression_ratio = temporal
        pipeline.vae_spatial_compression_ratio = spatial
        frames, height, width = noise.shape[2:]
        tokens = pipeline(
            prompt_embeds=conditioning["prompt"],
            prompt_attention_mask=conditioning["prompt_mask"],
            negative_prompt_embeds=negative["prompt"],
            negative_prompt_attention_mask=negative["prompt_mask"],
            height=height * spatial,
            width=width * spatial,
            num_frames=(frames - 1) * temporal + 1,
            frame_rate=self.frame_rate,
            latents=self._pack(noise),
            num_inference_steps=how.steps,
            guidance_scale=how.guidance_scale,
            callback_on_step_end=step_told,
            output_type="latent",
        ).frames
        return self._unpack(tokens, noise)


FAMILY = LTX
