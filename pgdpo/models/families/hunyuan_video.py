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

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE as TEMPLATE

from pgdpo.config import ModelConfig, SampleSettings
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.protocols import Conditioning, TokenSharing
from pgdpo.models.steps import step_told
from pgdpo.models.weights.kept import computes_in

TEXT_LENGTH = 256  # HunyuanVideoPipeline.__call__'s max_sequence_length
GUIDANCE = 6.0  # HunyuanVideoPipeline.__call__'s guidance_scale


class HunyuanVideoEncoders(PipelineEncoders):
    # The pipeline lets Llama read so many tokens more as its template takes before the prompt, and crops those; what is
    # behind the prompt counts as the prompt does.
    readers = (
        TextReader("Llama", TEXT_LENGTH + TEMPLATE["crop_start"], template=TEMPLATE["template"]),
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
    transformer_class = HunyuanVideoTransformer3DModel
    pipeline_class = HunyuanVideoPipeline
    vae_class = AutoencoderKLHunyuanVideo
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

    @torch.no_grad()
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
        pipeline = HunyuanVideoPipeline(
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
