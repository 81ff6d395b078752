"""HunyuanVideo, text- and image-to-video, as diffusers has it (HunyuanVideoTransformer3DModel; arXiv 2412.03603).

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma. Weights
that are distilled from classifier-free guidance take the guidance scale as an input, and training tells them the one
that sampling does.

Guidance and timestep come in the transformer's dtype, as the pipeline hands them over: guidance 6 in bf16 is told as
bf16(6) * 1000 = 6016, and a step at timestep 937.5 as 936. Both are 8-bit significands, so that up to four noise levels
of the scheduler's thousand are told as one. Exact numbers would be others than sampling ever tells: the embeddings of
6000 and 6016 have a cosine of 0.63.

Image-to-video is one of two (`image_condition_type` of the transformer's configuration):

- latent_concat (the released 33ch): the image's latents and a mask stand behind the noisy latents as channels. Every
  latent frame is a prediction. (The pipeline cuts the first four frames off what it made; here they stay.)
- token_replace: the image's latents are the first latent frame, clean, and its tokens are modulated for timestep 0. The
  pipeline's latents stay fp32 then, and with them the timesteps that it tells.

In both Llava reads a prompt together with its picture, so that a pair has an embedding of its own. The unconditional
branch (a negative prompt, a dropped caption) is read beside a black picture; the latents stay the image's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pgdpo.config.families import Licence, SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.models.encoders.hunyuan_video import (
    IMAGE_TEXT_LENGTH,
    INTERLEAVE,
    TEXT_LENGTH,
    HunyuanVideoEncoders,
    HunyuanVideoImageEncoders,
)
from pgdpo.models.encoders.pipeline import VaeFamily
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, Tokens, TokenSharing
from pgdpo.models.steps import step_told
from pgdpo.models.weights.kept import computes_in

if TYPE_CHECKING:
    from diffusers import HunyuanVideoTransformer3DModel

GUIDANCE = (
    6.0  # HunyuanVideoPipeline.__call__'s guidance_scale, and that of its image-to-video pipeline's example
)
NOISE_SHARE = 0.999  # of noise in the image-to-video pipeline's first latents; the rest is the image

# Beginnings of its layers' names, here and in the original repository.
_DOUBLE, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
_REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\."
_REFINED = r"txt_in.individual_token_refiner.blocks.\1."
_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# The rows of `adapters/comfyui.py`.
LAYERS = (
    (_DOUBLE + r"attn\.to_[qkv]", r"double_blocks.\1.img_attn_qkv", _ATTENTION),
    (_DOUBLE + r"attn\.add_[qkv]_proj", r"double_blocks.\1.txt_attn_qkv", _ADDED),
    (_DOUBLE + r"attn\.to_out\.0", r"double_blocks.\1.img_attn_proj"),
    (_DOUBLE + r"attn\.to_add_out", r"double_blocks.\1.txt_attn_proj"),
    (_DOUBLE + r"ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.fc1"),
    (_DOUBLE + r"ff\.net\.2", r"double_blocks.\1.img_mlp.fc2"),
    (_DOUBLE + r"ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.fc1"),
    (_DOUBLE + r"ff_context\.net\.2", r"double_blocks.\1.txt_mlp.fc2"),
    (_DOUBLE + r"norm1\.linear", r"double_blocks.\1.img_mod.linear"),
    (_DOUBLE + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.linear"),
    (_SINGLE + r"(?:attn\.to_[qkv]|proj_mlp)", r"single_blocks.\1.linear1", (*_ATTENTION, "proj_mlp")),
    (_SINGLE + r"proj_out", r"single_blocks.\1.linear2"),
    (_SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.linear"),
    (_REFINER + r"attn\.to_[qkv]", _REFINED + "self_attn_qkv", _ATTENTION),
    (_REFINER + r"attn\.to_out\.0", _REFINED + "self_attn_proj"),
    (_REFINER + r"ff\.net\.0\.proj", _REFINED + "mlp.fc1"),
    (_REFINER + r"ff\.net\.2", _REFINED + "mlp.fc2"),
)


class HunyuanVideoSettings(ModelConfig):
    guidance: float | None = Field(
        None,
        gt=0,
        description="hunyuan_video: the guidance scale that the distilled model is told, in training and in sampling; "
        "by default the pipelines', 6.0. A model without such an input (image-to-video by latent_concat) takes none.",
    )


LICENCE = Licence(
    "other",
    "https://github.com/Tencent-Hunyuan/HunyuanVideo/blob/main/LICENSE.txt",
    "tencent-hunyuan-community",
    "not in the European Union, the United Kingdom and South Korea; above 100 million users a month by a licence of "
    "its own; outputs may improve no other model",
    read="2026-11-27",
)


class HunyuanVideo(VaeFamily):
    settings = HunyuanVideoSettings
    models = "HunyuanVideo 1.0"
    pipelines = ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline")
    licences = {"hunyuanvideo-community/HunyuanVideo*": LICENCE}  # noqa: RUF012
    fps = 24.0  # `export_to_video(fps=)` beside its pipeline in diffusers' documentation
    cards = {  # noqa: RUF012
        # Tencent-Hunyuan/HunyuanVideo, hyvideo/config.py: infer-steps, flow-shift; cfg-scale 1 (no guidance besides the
        # embedded one, model.guidance).
        "hunyuan_video": SampleSettings(50, 1.0, None, 7.0),
        # Tencent-Hunyuan/HunyuanVideo-I2V, README.md: infer-steps, and the flow-shift beside --i2v-stability, which
        # mixes the image into the first latents, as diffusers' pipeline does.
        "hunyuan_video_i2v": SampleSettings(50, 1.0, None, 7.0),
    }
    comfyui = LAYERS
    transformer_class = Diffusers("HunyuanVideoTransformer3DModel")
    pipeline_class = Diffusers("HunyuanVideoPipeline")
    vae_class = Diffusers("AutoencoderKLHunyuanVideo")
    encoders_class = HunyuanVideoEncoders
    text_length = TEXT_LENGTH
    masks_text = True
    # Text attends behind the video, in blocks of two streams and of one; its refiner runs whole on every rank.
    sharing = TokenSharing(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        streams={"video": Tokens(attention="attn", arguments={}, ropes={"rope": 0})},
        first_frame=6,
    )
    condition: str | None = None  # how the transformer is given an image

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        self._choose_guidance()
        if self.condition == "token_replace":  # diffusers does not name its blocks
            self.repeated_blocks = (
                "HunyuanVideoTokenReplaceTransformerBlock",
                "HunyuanVideoTokenReplaceSingleTransformerBlock",
                *self.transformer_class._repeated_blocks,
            )

    @property
    def card(self) -> str:
        return "hunyuan_video" if self.condition is None else "hunyuan_video_i2v"

    def _check_parts(self, folder: Path) -> None:
        """As `check_parts`, of the pipeline that this transformer is for."""
        self.condition = self._architecture.get("image_condition_type")
        if self.condition is not None:
            if self.condition not in INTERLEAVE:
                raise InputError(
                    f"model.path is {self.model.path!r}: its transformer's image_condition_type is "
                    f"{self.condition!r}; what trains is {' or '.join(INTERLEAVE)}, or text-to-video (null)"
                )
            self.pipeline_class = diffusers.HunyuanVideoImageToVideoPipeline
            self.encoders_class = HunyuanVideoImageEncoders
            self.pictures, self.image_names = (0,), ("image_latents", "prompt", "pooled")
            self.text_length = IMAGE_TEXT_LENGTH
        super()._check_parts(folder)

    def _choose_guidance(self) -> None:
        """What is told, and what the pipeline rounds of it. Raises InputError for a guidance that nobody listens to."""
        given = self.model.guidance
        # The text-to-video pipeline tells it in any case, image-to-video's where the transformer has an input for it.
        if self.condition is not None and not self._architecture.get("guidance_embeds", True):
            if given is not None:
                raise InputError(
                    f"model.guidance is {given:g}, and the transformer of model.path {self.model.path!r} has no input "
                    "for it (guidance_embeds): leave model.guidance out; evaluate.guidance_scale guides what is sampled"
                )
            self.guidance, self.told = None, ()
        else:
            self.guidance = GUIDANCE if given is None else given
            self.told = (self.guidance,)
        rounded = ["guidance"] * bool(self.told) + ["timestep"] * (self.condition != "token_replace")
        if rounded:
            self.told_rounded = f"{' and '.join(rounded)}, to the dtype of train.precision"

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        super().check_size(num_frames, height, width)
        if num_frames == 1 and self.pictures:
            raise InputError(
                "data.num_frames is 1: an image-to-video model is given that frame; take 5 or more"
            )

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        config, (channels, _, height, width) = self._architecture, latent_shape
        found = {
            "prompt": torch.empty(batch, self.text_length, config["text_embed_dim"]),
            "prompt_mask": torch.empty(batch, self.text_length, dtype=torch.bool),
            "pooled": torch.empty(batch, config["pooled_projection_dim"]),
        }
        if self.pictures:
            found["image_latents"] = torch.empty(batch, channels, 1, height, width)
        return found

    def drop_whole_masks(self, transformer: HunyuanVideoTransformer3DModel) -> None:
        WholeText(transformer)

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return self._predict_at(transformer, noisy, self.timestep(sigma), conditioning)

    def _predict_at(
        self, transformer: Callable, noisy: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The transformer's call as the pipelines make it; `timestep` `[N]`, fp32."""
        given = noisy
        if self.condition is not None:
            given = GIVEN[self.condition](noisy, conditioning["image_latents"].to(noisy.dtype))
        return transformer(
            hidden_states=given,
            timestep=timestep if self.condition == "token_replace" else timestep.to(noisy.dtype),
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            encoder_attention_mask=text_mask(conditioning, noisy.dtype),
            pooled_projections=conditioning["pooled"].to(noisy.dtype),
            guidance=self.told_guidance(noisy),
            return_dict=False,
        )[0]

    def told_guidance(self, noisy: torch.Tensor) -> torch.Tensor | None:
        """`[N]`, of the dtype and the device of `noisy` `[N, ...]`: rounded, then multiplied, as the pipeline does;
        None where the transformer is told none."""
        if self.guidance is None:
            return None
        return torch.full_like(noisy[:, 0, 0, 0, 0], self.guidance) * 1000.0

    def loss_mask(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor | None:
        """Frame weights `[F]`: a first frame that takes the image's place is no prediction. None where none does."""
        if self.condition != "token_replace":
            return None
        weights = torch.ones(latents.shape[2], device=latents.device)
        weights[0] = 0
        return weights

    @no_grad
    def sample(
        self,
        transformer: HunyuanVideoTransformer3DModel,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor:
        """As `Family.sample`; the embedded guidance is training's, and `how.guidance_scale` above 1 guides as well.

        The pipeline rounds the guidance to the dtype that the weights are held in, which under autocast is not that of
        the pipeline that the trained model will be loaded in: it is told here as in training.
        """
        conditioning, negative = self.trimmed(conditioning), self.trimmed(negative)
        if self.condition is not None:
            return self._sample_from_image(transformer, noise, conditioning, negative, how)
        parts = {"vae": None, "text_encoder": None, "tokenizer": None}
        pipeline = self.pipeline_class(
            **parts,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
            scheduler=self.load_scheduler(how.flow_shift),
        )
        pipeline.set_progress_bar_config(disable=True)
        guidance = self.told_guidance(noise.to(computes_in(transformer, noise.device)))
        with transformer.register_forward_pre_hook(
            lambda module, inputs, options: (inputs, {**options, "guidance": guidance}), with_kwargs=True
        ):
            return pipeline(
                prompt_embeds=conditioning["prompt"],
                prompt_attention_mask=text_mask(conditioning, transformer.dtype),
                pooled_prompt_embeds=conditioning["pooled"],
                negative_prompt_embeds=negative["prompt"],
                negative_prompt_attention_mask=text_mask(negative, transformer.dtype),
                negative_pooled_prompt_embeds=negative["pooled"],
                height=16,  # `latents` alone fix the size; the pipeline only checks that these divide by 16
                width=16,
                num_frames=1,
                latents=noise,
                num_inference_steps=how.steps,
                guidance_scale=self.guidance,
                true_cfg_scale=how.guidance_scale,
                callback_on_step_end=step_told,
                output_type="latent",
            ).frames

    def _sample_from_image(
        self,
        transformer: HunyuanVideoTransformer3DModel,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor:
        """The pipeline's loop: it would encode the image again, with a VAE beside the transformer."""
        import numpy as np

        scheduler, image = self.load_scheduler(how.flow_shift), conditioning["image_latents"]
        scheduler.set_timesteps(sigmas=np.linspace(1, 0, how.steps + 1)[:-1], device=noise.device)
        share = torch.tensor(NOISE_SHARE, device=noise.device)
        latents = noise * share + image * (1 - share)
        for number, timestep in enumerate(scheduler.timesteps):
            at, noisy = timestep.expand(len(latents)), latents.to(computes_in(transformer, latents.device))
            predicted = self._predict_at(transformer, noisy, at, conditioning)
            if how.guidance_scale > 1:
                without = self._predict_at(transformer, noisy, at, negative)
                predicted = without + how.guidance_scale * (predicted - without)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            if self.condition == "token_replace":
                latents = with_first_frame(latents, image)
            moved(f"denoising step {number + 1} of {len(scheduler.timesteps)}")
        return latents


def with_first_frame(
    latents: torch.Tensor,  # [N, C, F, H, W]
    image: torch.Tensor,  # [N, C, 1, H, W]
) -> torch.Tensor:
    return torch.cat([image, latents[:, :, 1:]], dim=2)


def with_image_channels(
    noisy: torch.Tensor,  # [N, C, F, H, W]
    image: torch.Tensor,  # [N, C, 1, H, W]
) -> torch.Tensor:
    """`[N, 2 C + 1, F, H, W]`: behind `noisy` the image's latents and a mask of ones, in the first frame, else 0."""
    first = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    return torch.cat([noisy, torch.nn.functional.pad(first, (0, 0, 0, 0, 0, noisy.shape[2] - 1))], dim=1)


# What the transformer is given of noisy latents and of an image's, by its condition.
GIVEN = {"latent_concat": with_image_channels, "token_replace": with_first_frame}


def text_mask(conditioning: Conditioning, dtype: torch.dtype) -> torch.Tensor:
    """`[N, L]`, one where a token stands; where no mask is needed, one element that is expanded to that shape.

    The forward of diffusers wants a mask in any case. By its strides `WholeText` sees on the host that all are ones.
    """
    if (mask := conditioning.get("prompt_mask")) is not None:
        return mask.to(dtype)
    prompt = conditioning["prompt"]
    return torch.ones((), dtype=dtype, device=prompt.device).expand(prompt.shape[:2])


class WholeText:
    """Takes the mask over video and text out of the blocks' arguments in calls whose text has no padding.

    A mask of ones alone keeps attention from its flash kernels, and some backends from running at all. What backward
    recomputes of a block is of the newest call, and is computed as that one was.
    """

    def __init__(self, transformer: HunyuanVideoTransformer3DModel) -> None:
        self.whole = False
        transformer.register_forward_pre_hook(self._look, with_kwargs=True)
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            block.register_forward_pre_hook(self._drop)

    def _look(self, transformer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.whole = kwargs["encoder_attention_mask"].stride() == (0, 0)

    def _drop(self, block: torch.nn.Module, args: tuple) -> tuple | None:
        """`args`: hidden states, those of the text, modulation, the mask, rotary embeddings, ..."""
        return (*args[:3], None, *args[4:]) if self.whole else None


FAMILY = HunyuanVideo
