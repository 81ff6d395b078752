"""CogVideoX 2b and 5b and CogVideoX 1.5, text- and image-to-video, as diffusers has them (CogVideoXTransformer3DModel,
T5; arXiv 2408.06072).

A DDPM with velocity prediction: noisy = sqrt(a) x + sqrt(1 - a) eps, the model predicts sqrt(a) eps - sqrt(1 - a) x
(arXiv 2202.00512) and is conditioned on the integer timestep t, with a = alphas_cumprod[t] of the pipeline's scheduler
(its SNR shift and zero terminal SNR included). sigma in (0, 1) stands for t = floor(1000 sigma). What differs between
the models is read from the folder:

- image-to-video: the image's latents stand behind the noisy ones as channels, in the first frame; zeros in the others.
  The pipeline draws them from what its VAE gives for the image; here they are its mode, once and for all: policy,
  reference and every draw of a pair see the same image. The original training adds noise to the image before
  (https://github.com/zai-org/CogVideo, finetune/), the pipeline does not, and what it tells is what is trained on.
- 1.5: two latent frames are one token. A clip has an odd number of them, so one more stands before it (`lead`), in
  training a copy of the first, as the original does; the pipeline drops it before it decodes, and no loss counts it.
- 1.5 image-to-video is told a number beside the timestep, always OFS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pgdpo.config.families import FREE, Licence, SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily, check_multiples
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, Tokens, TokenSharing
from pgdpo.models.steps import step_told

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

TEXT_LENGTH = 226  # the pipelines' max_sequence_length
JOINED = 2  # latent frames that are one token of CogVideoX 1.5
FPS_15 = 16.0  # of CogVideoX 1.5, by its documentation; the others make 8
OFS = 2.0  # what CogVideoXImageToVideoPipeline tells a transformer that has an embedding for it


class CogVideoXEncoders(PipelineEncoders):
    readers = (TextReader("T5", TEXT_LENGTH),)

    def __init__(self, family: CogVideoX, device: torch.device) -> None:
        super().__init__(family, device)
        beside = {"image": "mode"} if family.pictures else {}
        beside |= {"lead": str(family.lead)} if family.lead else {}
        self.parts["clips"] |= beside
        self.fingerprint += "".join(f":{name}:{value}" for name, value in beside.items())

    def embed(self, pipeline: CogVideoXPipeline, prompts: list[str]) -> list[Conditioning]:
        """T5's states of all 226 tokens: the transformer masks none, so padding counts and is stored."""
        embeds, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=self.device,
        )
        return [{"prompt": row} for row in embeds]

    @no_grad
    def encode_images(self, pictures: dict[int, np.ndarray], num_frames: int, prompt: str) -> Conditioning:
        """`image_latents` `[C, 1, H, W]`: by the pipeline's own `prepare_latents`, of the mode where that draws."""
        from PIL import Image

        (height, width), device = pictures[0].shape[:2], self.device
        vae = self.open_vae((num_frames, height, width), "encoded")  # as the clips that it stands beside
        channels, temporal, spatial = self.family.vae_shape
        # What the method reads of its own pipeline; of one frame nothing is filled up.
        pipeline = SimpleNamespace(
            vae=SimpleNamespace(config=vae.config, encode=lambda pixels: _mode(vae, pixels)),
            vae_scale_factor_temporal=temporal,
            vae_scale_factor_spatial=spatial,
            vae_scaling_factor_image=vae.config.scaling_factor,
            transformer=SimpleNamespace(config=SimpleNamespace(patch_size_t=None)),
            scheduler=SimpleNamespace(init_noise_sigma=1.0),
        )
        processor = diffusers.video_processor.VideoProcessor(vae_scale_factor=spatial)
        image = processor.preprocess(Image.fromarray(pictures[0]), height=height, width=width)
        _, found = diffusers.CogVideoXImageToVideoPipeline.prepare_latents(
            pipeline,
            image.to(device, vae.dtype),
            1,
            channels,
            1,
            height,
            width,
            torch.float32,
            device,
            latents=torch.empty(0),  # the noise is drawn in training
        )
        return {"image_latents": found[0].transpose(0, 1).cpu()}

    def normalize(self, vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
        latents = super().normalize(vae, latents)
        return torch.cat([latents[:, :, :1]] * self.family.lead + [latents], dim=2)

    def decode_images(self, latents: torch.Tensor) -> np.ndarray:
        """One frame; 1.5 is given its latents over the scaling factor in place of times it (`invert_scale_latents`)."""
        config = self.family.meta_vae.config
        scale = config.scaling_factor**2 if config.invert_scale_latents else 1.0
        return self.decode_video(torch.cat([latents[:, :1] * scale] * (1 + self.family.lead), dim=1))

    def decode(self, vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(vae, latents[:, :, self.family.lead :])


def _mode(vae: AutoencoderKLCogVideoX, pixels: torch.Tensor) -> SimpleNamespace:
    """An encoding of which diffusers' `retrieve_latents` draws nothing."""
    return SimpleNamespace(latents=vae.encode(pixels).latent_dist.mode())


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


OWNERS = ("zai-org", "THUDM")  # on the hub, by the name of now and of then
LICENCE_2B = Licence(
    "apache-2.0", "https://huggingface.co/zai-org/CogVideoX-2b/blob/main/LICENSE", terms=FREE
)
LICENCE = Licence(
    "other",
    "https://huggingface.co/zai-org/CogVideoX-5b/blob/main/LICENSE",
    "cogvideox-license",
    "research is free; commercial use is to be registered, and goes up to 1 million visits a month",
    read="2026-11-27",
)


class CogVideoX(VaeFamily):
    settings = ModelConfig
    models = "CogVideoX"
    pipelines = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")
    licences = {  # noqa: RUF012
        **{f"{owner}/CogVideoX-2b": LICENCE_2B for owner in OWNERS},
        **{f"{owner}/CogVideoX*": LICENCE for owner in OWNERS},
    }
    fps = 8.0  # `export_to_video(fps=)` beside its pipeline in diffusers' documentation; 1.5: FPS_15
    # The defaults of both pipelines' __call__, and the model cards' example.
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
        streams={"video": Tokens(attention="attn1", arguments={"image_rotary_emb": 0}, ropes={})},
        text_first=True,
        processor=DispatchedAttention,
    )
    text_length = TEXT_LENGTH

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        self._choose_task()
        joined = self._architecture.get("patch_size_t")
        if joined not in (None, JOINED):
            raise InputError(
                f"model.path is {model.path!r}: its transformer joins {joined} latent frames (patch_size_t); "
                f"CogVideoX 1.5 joins {JOINED}, the others none"
            )
        # An odd number of latent frames lacks one to whole pairs.
        self.lead = 0 if joined is None else 1
        kind = self._scheduler.config.prediction_type
        if kind != "v_prediction":
            raise InputError(
                f"model.path is {model.path!r}: its scheduler's prediction_type is {kind!r}, CogVideoX was trained "
                "with 'v_prediction': take the model's own scheduler/scheduler_config.json"
            )

    def _choose_task(self) -> None:
        """Text- or image-to-video: by the transformer's channels, and what its pipeline puts there."""
        taken, given = self._architecture["in_channels"], self._architecture["out_channels"]
        if taken == given:
            return
        wanted = "CogVideoXImageToVideoPipeline"
        try:
            found = diffusers.DiffusionPipeline.load_config(self.source).get("_class_name")
        except OSError:
            found = "folder without a model_index.json that can be read"
        if taken != 2 * given or found != wanted:
            raise InputError(
                f"model.path is {self.model.path!r}: its transformer takes {taken} channels and gives {given}, in a "
                f"{found}; what trains is text-to-video ({given} channels) and image-to-video from a first frame "
                f"({2 * given}, in a {wanted})"
            )
        self.pipeline_class = diffusers.CogVideoXImageToVideoPipeline
        self.pictures, self.image_names = (0,), ("image_latents",)

    @property
    def own_fps(self) -> float:
        return FPS_15 if self.lead else self.model.fps

    @functools.cached_property
    def _scheduler(self):
        return self.load_scheduler()

    def vae_factors(self, vae: AutoencoderKLCogVideoX) -> tuple[int, int]:
        return vae.config.temporal_compression_ratio, 2 ** (len(vae.config.block_out_channels) - 1)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """As `VaeFamily.check_size`; the latent frames must be odd, since the VAE decodes an even number of them to
        three frames more than were encoded. (CogVideoX 1.5 was trained on 16k + 1 frames, 81 and 161 above all.)"""
        _, temporal, spatial = self.vae_shape
        check_multiples(num_frames, height, width, spatial=spatial * self.patch[1], temporal=2 * temporal)
        if num_frames == 1 and self.image_names:
            raise InputError(
                f"data.num_frames is 1: an image-to-video model is given that frame; take {2 * temporal + 1} or more"
            )

    def check_positions(self, num_frames: int, height: int, width: int) -> None:
        """Learned positions are those of one clip, in whose place diffusers computes some for other lengths. 1.5 cuts
        its rows and columns out of a table; others are computed."""
        config, spatial = self._architecture, self.vae_shape[2]
        sides = {"height": config["sample_height"] * spatial, "width": config["sample_width"] * spatial}
        if config.get("use_learned_positional_embeddings"):
            learned = config["sample_frames"], *sides.values()
            if (num_frames, height, width) != learned:
                raise InputError(
                    f"data.num_frames, data.height and data.width are {num_frames}, {height} and {width}: this "
                    "transformer has learned positions; allowed are {}, {} and {}".format(*learned)
                )
        for key, size in {"height": height, "width": width}.items() if self.lead else ():
            if size > sides[key]:
                raise InputError(
                    f"data.{key} is {size}: this transformer's rotary table ends at {sides[key]} (sample_{key}); take "
                    "that or less"
                )

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        channels, _, height, width = latent_shape
        shapes = {"prompt": (self.text_length, self._architecture["text_embed_dim"])}
        if self.image_names:
            shapes["image_latents"] = (channels, 1, height, width)
        return {name: torch.empty(batch, *shape) for name, shape in shapes.items()}

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """int64 timesteps 0 to 999 of `sigma` in (0, 1)."""
        steps = self.num_train_timesteps
        return (sigma * steps).long().clamp(0, steps - 1)

    def level(self, sigma: torch.Tensor) -> torch.Tensor:
        return self._scheduler.alphas_cumprod.to(sigma.device, torch.float32)[self.timestep(sigma)]

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        given, image = {}, conditioning.get("image_latents")
        if image is not None:
            wide = self._architecture.get("ofs_embed_dim")
            given["ofs"] = None if wide is None else noisy.new_full((1,), OFS)
        seen = noisy if image is None else torch.cat([noisy, in_first_frame(image, noisy)], dim=1)
        return transformer(
            hidden_states=seen.transpose(1, 2),  # (N, F, C, H, W)
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            timestep=self.timestep(sigma),
            image_rotary_emb=self._rotary(noisy),
            return_dict=False,
            **given,
        )[0].transpose(1, 2)

    def loss_mask(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor | None:
        """Frame weights `[F]`: the frame that fills up 1.5's first pair is no part of the clip."""
        if not self.lead:
            return None
        weights = torch.ones(latents.shape[2], device=latents.device)
        weights[: self.lead] = 0
        return weights

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
        given, image = {}, conditioning.get("image_latents")
        if image is not None:
            # It would encode the image again, with a VAE beside the transformer.
            placed = in_first_frame(image, noise).transpose(1, 2).to(conditioning["prompt"].dtype)
            pipeline.prepare_latents = lambda *told: (told[-1], placed)
            given["image"] = image.new_zeros(1, 3, 1, 1)
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
            **given,
        ).frames.transpose(1, 2)


def in_first_frame(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The image's latents `[N, C, 1, H, W]` in the first of as many frames as `like` has, zeros in the others."""
    placed = torch.zeros_like(like)
    placed[:, :, :1] = image
    return placed


FAMILY = CogVideoX
