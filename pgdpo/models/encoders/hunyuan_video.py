"""VAE and text encoders of a HunyuanVideo pipeline, text- and image-to-video, as `prepare` and `evaluate` use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning

if TYPE_CHECKING:
    import numpy as np
    from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
    from PIL import Image

    from pgdpo.models.encoders.tiling import Way

TEXT_LENGTH = (
    256  # HunyuanVideoPipeline.__call__'s max_sequence_length, and HunyuanVideoImageToVideoPipeline's
)
# What HunyuanVideoImageToVideoPipeline crops behind the prompt, or off the end of one that is too long.
CROPPED = 4
INTERLEAVE = {"latent_concat": 2, "token_replace": 4}  # of how many of the image's tokens it takes one
BLACK_INTERLEAVE = (
    2  # beside a black picture: `encode_prompt`'s default, which it is not told otherwise there
)
IMAGE_TOKENS = 576  # `image_emb_len` of its prompt template
IMAGE_TEXT_LENGTH = IMAGE_TOKENS // BLACK_INTERLEAVE + TEXT_LENGTH - CROPPED


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


class HunyuanVideoImageEncoders(PipelineEncoders):
    """Llava, which sees the picture beside the prompt, CLIP, and the VAE for the picture."""

    @property
    def readers(self) -> tuple[TextReader, ...]:
        template = (
            diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE
        )
        limit = TEXT_LENGTH + template["crop_start"] - CROPPED
        return (
            TextReader("Llava", limit, template=template["template"]),
            TextReader("CLIP", 77, tokenizer="tokenizer_2"),
        )

    text_parts = (*HunyuanVideoEncoders.text_parts, "image_processor")

    def __init__(self, family: VaeFamily, device: torch.device) -> None:
        super().__init__(family, device)
        # Beside the clips stand their prompts, read as the condition has it: the two models have the same encoders.
        self.parts["clips"] |= {**self.parts["text"], "image": family.condition}
        self.fingerprint += f":image:{family.condition}"
        self._llava: HunyuanVideoImageToVideoPipeline | None = None

    def embed(self, pipeline: HunyuanVideoImageToVideoPipeline, prompts: list[str]) -> list[Conditioning]:
        """Beside a black picture, as the pipeline reads a negative prompt; of any size, black comes to one input."""
        from PIL import Image

        black = Image.new("RGB", (16, 16))
        return [self._read(pipeline, prompt, black, BLACK_INTERLEAVE) for prompt in prompts]

    @no_grad
    def encode_images(self, pictures: dict[int, np.ndarray], num_frames: int, prompt: str) -> Conditioning:
        """`image_latents` `[C, 1, H, W]`, and of the prompt beside the picture `prompt` `[L, D]`, `pooled` `[D2]`."""
        from PIL import Image

        picture, (height, width) = Image.fromarray(pictures[0]), pictures[0].shape[:2]
        vae = self.open_vae((num_frames, height, width), "encoded")  # as the clips that it stands beside
        processor = diffusers.video_processor.VideoProcessor()
        pixels = processor.preprocess(picture, height=height, width=width)[:, :, None]
        found = {"image_latents": self.encode(vae, pixels.to(self.device, vae.dtype))[0].float()}
        found |= self._read(self._load_text(), prompt, picture, INTERLEAVE[self.family.condition])
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _read(
        self,
        pipeline: HunyuanVideoImageToVideoPipeline,
        prompt: str,
        picture: Image.Image,
        interleave: int,
    ) -> Conditioning:
        """By the pipeline's own `encode_prompt`, a prompt at a time: of several it takes no long one. The image's
        tokens stand first; padding, behind the last token, is not stored."""
        embeds, pooled, mask = pipeline.encode_prompt(
            picture,
            [prompt],
            device=self.device,
            max_sequence_length=TEXT_LENGTH,
            image_embed_interleave=interleave,
        )
        return {"prompt": embeds[0, : int(mask.sum())], "pooled": pooled[0]}

    def _load_text(self) -> HunyuanVideoImageToVideoPipeline:
        """It stays beside the VAE, since each pair needs both."""
        if self._llava is None:
            self._llava = super()._load_text()
        return self._llava

    def load_beside(self, way: Way) -> None:
        if way == "encoded":
            self._load_text()

    def release(self) -> None:
        self._llava = None
        super().release()
