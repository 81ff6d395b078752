"""HunyuanVideo text-to-video, as diffusers has it (HunyuanVideoTransformer3DModel, Llama and CLIP; arXiv 2412.03603).

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma. The
released weights are distilled from classifier-free guidance: they take the guidance scale as an input, and training
tells them the one that sampling does.

Guidance and timestep come in the transformer's dtype, as the pipeline hands them over: guidance 6 in bf16 is told as
bf16(6) * 1000 = 6016, and a step at timestep 937.5 as 936. Both are 8-bit significands, so that up to four noise levels
of the scheduler's thousand are told as one. Exact numbers would be others than sampling ever tells: the embeddings of
6000 and 6016 have a cosine of 0.63.
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
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, TokenSharing
from pgdpo.models.steps import step_told
from pgdpo.models.weights.kept import computes_in

if TYPE_CHECKING:
    from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

TEXT_LENGTH = 256  # HunyuanVideoPipeline.__call__'s max_sequence_length
GUIDANCE = 6.0  # HunyuanVideoPipeline.__call__'s guidance_scale

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
        "by default the pipeline's, 6.0.",
    )


class HunyuanVideoEncoders(PipelineEncoders):
    @property
    def readers(self) -> tuple[TextReader, ...]:
        """The pipeline lets Llama read so many tokens more as its template takes before the prompt, and crops those;
        what is behind the prompt counts as the prompt does."""
        template = diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
        return (
            TextReader("Llama", TEXT_LENGTH + template["crop_start"], template=template["template"]),
            TextReader("CLIP", 77, tokenizer="tokenizer_2"),
        )

    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")

    def embed(self, pipeline: HunyuanVideoPipeline, prompts: list[str]) -> list[Conditioning]:
        """Llama's states behind the pipeline's prompt template, and CLIP's pooled embedding `[D2]`.

        Padding stands behind the last token and the transformer masks it: it is not stored.
        """
        embeds, pooled, mask = pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.text_length
        )
        lengths = mask.sum(1).tolist()
        return [{"prompt": embeds[i, :n], "pooled": pooled[i]} for i, n in enumerate(lengths)]


class HunyuanVideo(VaeFamily):
    settings = HunyuanVideoSettings
    fps = 24.0  # `export_to_video(fps=)` beside its pipeline in diffusers' documentation
    # Tencent-Hunyuan/HunyuanVideo, hyvideo/config.py: infer-steps, flow-shift; cfg-scale 1 (no guidance besides the
    # embedded one, model.guidance).
    cards = {"hunyuan_video": SampleSettings(50, 1.0, None, 7.0)}  # noqa: RUF012
    comfyui = LAYERS
    transformer_class = Diffusers("HunyuanVideoTransformer3DModel")
    pipeline_class = Diffusers("HunyuanVideoPipeline")
    vae_class = Diffusers("AutoencoderKLHunyuanVideo")
    encoders_class = HunyuanVideoEncoders
    text_length = TEXT_LENGTH
    masks_text = True
    # Text attends behind the video, in blocks of two streams and of one; its refiner runs whole on every rank.
    sharing = TokenSharing(
        blocks=("transformer_blocks", "single_transformer_blocks"), attention="attn", arguments={}, rope_dim=0
    )

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        self.guidance = GUIDANCE if model.guidance is None else model.guidance
        self.told = (self.guidance,)
        self.told_rounded = "guidance and timestep, to the dtype of train.precision"
        kind = self._architecture.get("image_condition_type")
        if kind is not None:
            raise InputError(
                f"model.path is {model.path!r}: its transformer wants an image ({kind}); `hunyuan_video` trains "
                "text-to-video, such as hunyuanvideo-community/HunyuanVideo"
            )

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        config = self.architecture()
        return {
            "prompt": torch.empty(batch, self.text_length, config["text_embed_dim"]),
            "prompt_mask": torch.empty(batch, self.text_length, dtype=torch.bool),
            "pooled": torch.empty(batch, config["pooled_projection_dim"]),
        }

    def drop_whole_masks(self, transformer: HunyuanVideoTransformer3DModel) -> None:
        WholeText(transformer)

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return transformer(
            hidden_states=noisy,
            timestep=self.timestep(sigma).to(noisy.dtype),
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            encoder_attention_mask=text_mask(conditioning, noisy.dtype),
            pooled_projections=conditioning["pooled"].to(noisy.dtype),
            guidance=self.told_guidance(noisy),
            return_dict=False,
        )[0]

    def told_guidance(self, noisy: torch.Tensor) -> torch.Tensor:
        """`[N]`, of the dtype and the device of `noisy` `[N, ...]`: rounded, then multiplied, as the pipeline does."""
        return torch.full_like(noisy[:, 0, 0, 0, 0], self.guidance) * 1000.0

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
