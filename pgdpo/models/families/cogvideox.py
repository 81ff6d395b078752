"""CogVideoX 2b and 5b text-to-video, as diffusers has them (CogVideoXTransformer3DModel, T5; arXiv 2408.06072).

A DDPM with velocity prediction: noisy = sqrt(a) x + sqrt(1 - a) eps, the model predicts sqrt(a) eps - sqrt(1 - a) x
(arXiv 2202.00512) and is conditioned on the integer timestep t, with a = alphas_cumprod[t] of the pipeline's scheduler
(its SNR shift and zero terminal SNR included). sigma in (0, 1) stands for t = floor(1000 sigma).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pgdpo.config.families import SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily, check_multiples
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, TokenSharing
from pgdpo.models.steps import step_told

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

TEXT_LENGTH = 226  # CogVideoXPipeline.__call__'s max_sequence_length


class CogVideoXEncoders(PipelineEncoders):
    readers = (TextReader("T5", TEXT_LENGTH),)

    def embed(self, pipeline: CogVideoXPipeline, prompts: list[str]) -> list[Conditioning]:
        """T5's states of all 226 tokens: the transformer masks none, so padding counts and is stored."""
        embeds, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=self.device,
        )
        return [{"prompt": row} for row in embeds]


class DispatchedAttention:
    """diffusers' `CogVideoXAttnProcessor2_0`, which calls torch's attention itself, through diffusers' dispatcher."""

    _attention_backend = "native"
    _parallel_config = None

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,  # always None: CogVideoX masks nothing
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(joint).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            rotate = diffusers.models.embeddings.apply_rotary_emb
            query, key = (
                torch.cat([part[:, :text], rotate(part[:, text:], image_rotary_emb, sequence_dim=1)], dim=1)
                for part in (query, key)
            )
        joint = diffusers.models.attention_dispatch.dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        joint = attn.to_out[1](attn.to_out[0](joint.flatten(2)))
        return joint[:, text:], joint[:, :text]


class CogVideoX(VaeFamily):
    settings = ModelConfig
    fps = 8.0  # `export_to_video(fps=)` beside its pipeline in diffusers' documentation
    # CogVideoXPipeline.__call__'s defaults, and the model cards' example.
    cards = {"cogvideox": SampleSettings(50, 6.0)}  # noqa: RUF012
    transformer_class = Diffusers("CogVideoXTransformer3DModel")
    pipeline_class = Diffusers("CogVideoXPipeline")
    vae_class = Diffusers("AutoencoderKLCogVideoX")
    encoders_class = CogVideoXEncoders
    prediction = "v"
    repeated_blocks = ("CogVideoXBlock",)
    # Text attends before the video. The pipeline computes the rotary tables, and hands them to the transformer.
    sharing = TokenSharing(
        blocks=("transformer_blocks",),
        attention="attn1",
        arguments={"image_rotary_emb": 0},
        rope_dim=None,
        text_first=True,
        processor=DispatchedAttention,
    )
    text_length = TEXT_LENGTH

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        config = self._architecture
        only = "`cogvideox` trains the text-to-video CogVideoX-2b and -5b"
        if config["in_channels"] != config["out_channels"]:
            raise InputError(
                f"model.path is {model.path!r}: its transformer takes {config['in_channels']} channels and gives "
                f"{config['out_channels']}: an image-to-video model; {only}"
            )
        if config.get("patch_size_t") is not None:
            raise InputError(
                f"model.path is {model.path!r}: its transformer joins {config['patch_size_t']} latent frames (it is "
                f"CogVideoX 1.5); {only}"
            )
        kind = self._scheduler.config.prediction_type
        if kind != "v_prediction":
            raise InputError(
                f"model.path is {model.path!r}: its scheduler's prediction_type is {kind!r}, CogVideoX was trained "
                "with 'v_prediction': take the model's own scheduler/scheduler_config.json"
            )

    @functools.cached_property
    def _scheduler(self):
        return self.load_scheduler()

    def vae_factors(self, vae: AutoencoderKLCogVideoX) -> tuple[int, int]:
        return vae.config.temporal_compression_ratio, 2 ** (len(vae.config.block_out_channels) - 1)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """As `VaeFamily.check_size`; the latent frames must be odd, since the VAE decodes an even number of them to
        three frames more than were encoded."""
        _, temporal, spatial = self.vae_shape
        check_multiples(num_frames, height, width, spatial=spatial * self.patch[1], temporal=2 * temporal)

    def check_positions(self, num_frames: int, height: int, width: int) -> None:
        """Learned positions are those of one size; others are computed."""
        config = self._architecture
        if not config.get("use_learned_positional_embeddings"):
            return
        learned = config["sample_height"], config["sample_width"]
        if self.latent_shape(num_frames, height, width)[2:] != learned:
            spatial = self.vae_shape[2]
            raise InputError(
                f"data.height and data.width are {height} and {width}: this transformer has learned positions; allowed "
                f"are {learned[0] * spatial} and {learned[1] * spatial}"
            )

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        return {"prompt": torch.empty(batch, self.text_length, self._architecture["text_embed_dim"])}

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """int64 timesteps 0 to 999 of `sigma` in (0, 1)."""
        steps = self.num_train_timesteps
        return (sigma * steps).long().clamp(0, steps - 1)

    def level(self, sigma: torch.Tensor) -> torch.Tensor:
        return self._scheduler.alphas_cumprod.to(sigma.device, torch.float32)[self.timestep(sigma)]

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return transformer(
            hidden_states=noisy.transpose(1, 2),  # (N, F, C, H, W)
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            timestep=self.timestep(sigma),
            image_rotary_emb=self._rotary(noisy),
            return_dict=False,
        )[0].transpose(1, 2)

    def _rotary(self, noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The pipeline's rotary embeddings for latents of this size (5b); None where the transformer has its own."""
        config = self._architecture
        if not config.get("use_rotary_positional_embeddings"):
            return None
        frames, height, width = noisy.shape[2:]
        # What the pipeline's method reads of its own pipeline; a latent stands for one pixel.
        pipeline = SimpleNamespace(
            vae_scale_factor_spatial=1,
            transformer=SimpleNamespace(config=SimpleNamespace(**{"patch_size_t": None, **config})),
        )
        return self.pipeline_class._prepare_rotary_positional_embeddings(
            pipeline, height, width, frames, noisy.device
        )

    @no_grad
    def sample(
        self,
        transformer: CogVideoXTransformer3DModel,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor:
        pipeline = self.pipeline_class(None, None, None, transformer, self.load_scheduler())
        pipeline.set_progress_bar_config(disable=True)
        height, width = (side * pipeline.vae_scale_factor_spatial for side in noise.shape[3:])
        # The 5b's scheduler adds noise between the steps: a sample's own, fixed by its initial noise.
        seeds = noise.flatten(1)[:, 0].float().view(torch.int32).tolist()
        generators = [torch.Generator(noise.device).manual_seed(seed) for seed in seeds]
        return pipeline(
            prompt_embeds=conditioning["prompt"],
            negative_prompt_embeds=negative["prompt"],
            height=height,
            width=width,
            num_frames=1,  # `latents` fix it
            latents=noise.transpose(1, 2),
            num_inference_steps=how.steps,
            guidance_scale=how.guidance_scale,
            generator=generators,
            callback_on_step_end=step_told,
            output_type="latent",
        ).frames.transpose(1, 2)


FAMILY = CogVideoX
