"""LTX-2, which makes sound and picture together, as diffusers has it (LTX2VideoTransformer3DModel; arXiv 2601.03233):
from text, and from a picture. Versions 2.0, 2.3 and 2.5 are configurations of one transformer.

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma, one noise
level for both streams. Each stream has layers of its own and looks at the other in every block. Both have positions in
seconds: the model is told the frame rate, and the sound is as long as the picture at that rate.

The text is Gemma's through the pipeline's connectors, which are frozen and see the prompt alone: what they make of it
is stored. They fill it up with learned registers, so that no text is masked, and `prompt` is always as long.

Without sound (`model.audio: false`, or clips that have none) the picture is computed as if the model made no other: the
streams don't look at each other (diffusers' `isolate_modalities`), and one empty latent stands for the sound.

From a picture (LTX2ImageToVideoPipeline) the first latent frame is that picture's, clean, at timestep 0. The pipelines
have `use_cross_timestep` on for every version, and so has training; from text it is the same number on or off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pgdpo.config.families import Licence, SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.diffusion.streams import AUDIO, VIDEO, by_stream
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.absent import guided, isolate, pipeline_around, ropes_of
from pgdpo.models.encoders.ltx2 import NEGATIVE, TEXT_LENGTH, LTX2Encoders, check_connectors
from pgdpo.models.encoders.pipeline import VaeFamily
from pgdpo.models.family import toy_encoders
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, Tokens, TokenSharing
from pgdpo.models.steps import step_told

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import LTX2VideoTransformer3DModel

    from pgdpo.config import DataConfig

TASKS = {"text_to_video": "LTX2Pipeline", "image_to_video": "LTX2ImageToVideoPipeline"}

# The rows of `adapters/comfyui.py`: comfy/ldm/lightricks/av_model.py, as diffusers reads such files.
LAYERS = (
    (r"(transformer_blocks\.\d+\..+)", r"\1"),
    (r"(audio_)?proj_in", r"\1patchify_proj"),
    (r"((?:audio_)?proj_out)", r"\1"),
    (r"((?:audio_)?caption_projection\..+)", r"\1"),
    (r"(audio_)?time_embed\.(.+)", r"\1adaln_single.\2"),
    (r"(audio_)?prompt_adaln\.(.+)", r"\1prompt_adaln_single.\2"),
    (r"av_cross_attn_(video|audio)_scale_shift\.(.+)", r"av_ca_\1_scale_shift_adaln_single.\2"),
    (r"av_cross_attn_(?:video|audio)_(a2v|v2a)_gate\.(.+)", r"av_ca_\1_gate_adaln_single.\2"),
)


class LTX2Settings(ModelConfig):
    audio: bool = Field(
        True,
        description="ltx2: train on the sound too; false: on the picture alone, which then doesn't hear it.",
    )
    frame_rate: float | None = Field(
        None, gt=0, description="ltx2: the same, by default 24; the sound's length follows from it."
    )
    task: Literal["text_to_video", "image_to_video"] | None = Field(
        None, description="ltx2: one of the first two; by default what the folder's pipeline is for."
    )

    @property
    def fps(self) -> float:
        return super().fps if self.encoders == "toy" else self.frame_rate or super().fps

    @property
    def streams(self) -> tuple[str, ...]:
        return (VIDEO, AUDIO) if self.audio else (VIDEO,)


class LTX2(VaeFamily):
    settings = LTX2Settings
    models = "LTX-2"
    pipelines = tuple(TASKS.values())
    streams = (VIDEO, AUDIO)
    licences = {  # noqa: RUF012
        "Lightricks/LTX-2.5*": Licence(
            "other",
            "https://github.com/Lightricks/LTX-2/blob/main/LICENSE.md",
            "ltx-2-x-community-license-agreement",
            "an entity with a revenue of $10 million a year or more needs a paid licence for all but non-commercial "
            "use; adapters are derivatives, under the same terms",
            "2026-11-27",
        ),
        "*/LTX-2*": Licence(
            "other",
            "https://huggingface.co/Lightricks/LTX-2/tree/main",
            "ltx-2-community-license-agreement",
            "an entity with a revenue of $10 million a year or more needs a paid licence for any commercial use",
            "2026-11-27",
        ),
    }
    fps = 24.0  # a default of its pipelines
    rate_key = "model.frame_rate"
    # The defaults of LTX2Pipeline.__call__; its scheduler shifts by the number of tokens.
    cards = {"ltx2": SampleSettings(30, 3.0, negative_prompt=NEGATIVE)}  # noqa: RUF012
    comfyui = LAYERS
    transformer_class = Diffusers("LTX2VideoTransformer3DModel")
    pipeline_class = Diffusers("LTX2Pipeline")
    vae_class = Diffusers("AutoencoderKLLTX2Video")
    encoders_class = LTX2Encoders
    text_length = TEXT_LENGTH
    takes_toy = {  # noqa: RUF012
        "latents": "in_channels",
        "sound": "audio_in_channels",
        "embeddings": "caption_channels",
    }
    # A timestep per token goes with its token; both forms of the rotary tables have the tokens last but one.
    sharing = TokenSharing(
        blocks=("transformer_blocks",),
        streams={
            VIDEO: Tokens("attn1", arguments={"timestep": 1}, ropes={"rope": -2, "cross_attn_rope": -2}),
            AUDIO: Tokens(
                "audio_attn1",
                arguments={"audio_timestep": 1},
                ropes={"audio_rope": -2, "cross_attn_audio_rope": -2},
                hidden_states="audio_hidden_states",
                output="audio_proj_out",
                heads="audio_num_attention_heads",
            ),
        },
        across={"audio_to_video_attn": (VIDEO, AUDIO), "video_to_audio_attn": (AUDIO, VIDEO)},
        apart="isolate_modalities",
    )

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        self.frame_rate = model.fps
        own = self.read_index().get("_class_name")
        task = model.task or next((task for task, name in TASKS.items() if name == own), "text_to_video")
        self.pictures = (0,) if task == "image_to_video" else ()
        self.image_names = ("image_latents",) if self.pictures else ()
        self.pipeline_class = getattr(diffusers, TASKS[task])
        self.told = (self.frame_rate, *self.pictures)
        if self.pictures and model.encoders == "toy":
            raise InputError(
                "model.task is 'image_to_video': the toy's encoders encode no pictures: set model.encoders to "
                "`pipeline`, or leave model.task out"
            )
        if model.encoders == "toy":
            self.check_toy()

    def _check_parts(self, folder: Path) -> None:
        super()._check_parts(folder)
        check_connectors(folder, self.model.path)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """As `VaeFamily.check_size`; a decoder that mirrors its latents at their edges needs two of them."""
        super().check_size(num_frames, height, width)
        step, mirrors = self.vae_shape[2], self.meta_vae.config.decoder_spatial_padding_mode == "reflect"
        for key, value in (("height", height), ("width", width)):
            if mirrors and value < 2 * step:
                raise InputError(f"data.{key} is {value}; this VAE decodes clips from {2 * step} on")

    def check_fps(self, data: DataConfig) -> None:
        """Clips are shown at the rate that the model is told: at another one the sound is out of step with them."""
        hears = AUDIO in self.streams
        if data.fps in (None, self.frame_rate) or (data.fps == "own" and not hears):
            return
        rate = "the clips' rate" if data.fps == "own" else f"{data.fps:g}"
        raise InputError(
            f"data.fps is {data.fps} and the model is told {self.frame_rate:g} frames a second (model.frame_rate)"
            f"{', by which the sound of a clip is as long as its picture' * hears}: set model.frame_rate to {rate} and "
            "leave data.fps out"
        )

    @property
    def vae_shape(self) -> tuple[int, int, int]:
        if (
            self.model.encoders == "toy"
        ):  # the pipeline, which infers all sizes from latents, refuses others than of 32
            return toy_encoders().latent_channels, 1, 32
        return super().vae_shape

    @functools.cached_property
    def audio_vae(self) -> SimpleNamespace:
        """The audio VAE's configuration, with `latents_per_second` and `latent_bins` (of the mel spectrogram)."""
        config = diffusers.AutoencoderKLLTX2Audio.load_config(self.source, subfolder="audio_vae")
        found = SimpleNamespace(**config)
        # `temporal_compression_ratio` and `mel_compression_ratio`, which diffusers has as constants.
        found.latents_per_second = found.sample_rate / found.mel_hop_length / 4
        found.latent_bins = found.mel_bins // 4
        return found

    def stream_shapes(self, num_frames: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        shapes = super().stream_shapes(num_frames, height, width)
        if AUDIO in self.streams:
            shapes[AUDIO] = self.sound_to_latents(num_frames)
        return shapes

    def sound_to_latents(self, num_frames: int) -> tuple[int, int, int]:
        """`(C, L, M)` of the sound of a clip of that many frames, as the pipeline computes it."""
        if self.model.encoders == "toy":
            return toy_encoders().sound_to_latents(num_frames)
        vae = self.audio_vae
        length = round(num_frames / self.frame_rate * vae.latents_per_second)
        return vae.latent_channels, length, vae.latent_bins

    @property
    def text_widths(self) -> tuple[int, int]:
        """Of `prompt` and `audio_prompt`: the connectors', which LTX-2.0's transformer projects to its own."""
        config = self._architecture
        if config.get("use_prompt_embeddings", True):
            return config["caption_channels"], config["caption_channels"]
        return config["cross_attention_dim"], config["audio_cross_attention_dim"]

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        channels, _, height, width = latent_shape
        video, audio = self.text_widths
        found = {"prompt": torch.empty(batch, self.text_length, video)}
        if AUDIO in self.streams and self.model.encoders != "toy":
            found["audio_prompt"] = torch.empty(batch, self.text_length, audio)
        if self.pictures:
            found["image_latents"] = torch.empty(batch, channels, 1, height, width)
        return found

    def predict(
        self,
        transformer: Callable,
        noisy: torch.Tensor | dict[str, torch.Tensor],
        sigma: torch.Tensor,
        conditioning: Conditioning,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        streams = by_stream(noisy)
        video, audio = streams[VIDEO], streams.get(AUDIO)
        told = self._told(video, audio, self.timestep(sigma), conditioning)
        pictures, sounds = transformer(**told, return_dict=False)
        found = {VIDEO: self._unpack(pictures, video)}
        if audio is not None:
            found[AUDIO] = self.pipeline_class._unpack_audio_latents(sounds, *audio.shape[2:])
        return found if isinstance(noisy, dict) else found[VIDEO]

    def _told(
        self,
        video: torch.Tensor,  # [N, C, F, H, W]
        audio: torch.Tensor | None,  # [N, C, L, M]; None: the picture alone
        timestep: torch.Tensor,  # [N]
        conditioning: Conditioning,
    ) -> dict:
        """The transformer's arguments, as the pipeline tells them. No text is masked, and no mask is told."""
        isolated = audio is None
        text = conditioning["prompt"].to(video.dtype)
        if isolated:
            audio, audio_text = self._no_sound(video)
        else:
            audio_text = self._audio_text(conditioning).to(video.dtype)
        times = {"timestep": timestep}
        if "image_latents" in conditioning:
            video = torch.cat([conditioning["image_latents"].to(video.dtype), video[:, :, 1:]], dim=2)
            times = {"timestep": timestep[:, None] * (1 - self._first(video)), "audio_timestep": timestep}
        frames, height, width = video.shape[2:]
        count, length, device = len(video), audio.shape[2], video.device
        rope, audio_rope = self._ropes
        return {
            "hidden_states": self._pack(video),
            "audio_hidden_states": self.pipeline_class._pack_audio_latents(audio),
            "encoder_hidden_states": text,
            "audio_encoder_hidden_states": audio_text,
            **times,
            "sigma": timestep,
            "num_frames": frames,
            "height": height,
            "width": width,
            "fps": self.frame_rate,
            "audio_num_frames": length,
            "video_coords": rope.prepare_video_coords(
                count, frames, height, width, device, fps=self.frame_rate
            ),
            "audio_coords": audio_rope.prepare_audio_coords(count, length, device),
            "isolate_modalities": isolated,
            "use_cross_timestep": True,
        }

    def _audio_text(self, conditioning: Conditioning) -> torch.Tensor:
        """The toy's words are the same for both streams."""
        return conditioning["prompt" if self.model.encoders == "toy" else "audio_prompt"]

    @functools.cached_property
    def _ropes(self) -> tuple:
        return ropes_of(self._architecture)

    def _no_sound(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One empty latent `[N, C, 1, 1]`, and one empty token of text, in place of the sound's."""
        count, channels = len(video), self._architecture["audio_in_channels"]
        return video.new_zeros(count, channels, 1, 1), video.new_zeros(count, 1, self.text_widths[1])

    def _first(self, latents: torch.Tensor) -> torch.Tensor:
        """`[N, tokens]`, fp32: 1 for those of the first latent frame."""
        mask = torch.zeros_like(latents[:, :1], dtype=torch.float32)
        mask[:, :, 0] = 1
        return self._pack(mask).squeeze(-1)

    def loss_mask(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor | None:
        """Frame weights `[F]` of the picture, whose given first frame is no prediction; None without one."""
        if not self.pictures:
            return None
        weights = torch.ones(latents.shape[2], device=latents.device)
        weights[0] = 0
        return weights

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        """`[N, C, F, H, W]` -> `[N, tokens, C p]`."""
        return self.pipeline_class._pack_latents(latents, self.patch[1], self.patch[0])

    def _unpack(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`_pack`, undone, to the shape of `like`."""
        sizes = [n // p for n, p in zip(like.shape[2:], self.patch, strict=True)]
        return self.pipeline_class._unpack_latents(tokens, *sizes, self.patch[1], self.patch[0])

    @no_grad
    def sample(
        self,
        transformer: LTX2VideoTransformer3DModel,
        noise: torch.Tensor | dict[str, torch.Tensor],
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Through the pipeline's own loop, begun from latents that the picture stands in already.

        `how.guidance_scale` is the picture's; with it go the other scales of the pipeline (`absent.SCALES`). At 1 there
        is no guidance of any kind. Without sound nothing is guided by it.
        """
        streams = by_stream(noise)
        video, audio = streams[VIDEO], streams.get(AUDIO)
        isolated = audio is None
        if isolated:
            audio, _ = self._no_sound(video)
        if "image_latents" in conditioning:
            video = torch.cat([conditioning["image_latents"], video[:, :, 1:]], dim=2)
        frames, height, width = self.clip_size(video.shape[1:])
        hook = transformer.register_forward_pre_hook(isolate, with_kwargs=True) if isolated else None
        try:
            pipeline = pipeline_around(
                transformer,
                self.pipeline_class,
                self.load_scheduler(how.flow_shift),
                factors=self.vae_shape[1:],
                text_widths=self.text_widths,
                bins=audio.shape[-1],
            )
            found = pipeline(
                **self._texts(conditioning, "", isolated),
                **self._texts(negative, "negative_", isolated),
                latents=video,
                audio_latents=audio,
                num_frames=frames,
                height=height,
                width=width,
                frame_rate=self.frame_rate,
                num_inference_steps=how.steps,
                guidance_scale=how.guidance_scale,
                **guided(how.guidance_scale, isolated=isolated, toy=self.model.encoders == "toy"),
                generator=torch.Generator(),  # of noise that it multiplies by 0
                callback_on_step_end=step_told,
                output_type="latent",
            )
        finally:
            if hook is not None:
                hook.remove()
        return found.frames if isolated else {VIDEO: found.frames, AUDIO: found.audio}

    def _texts(self, conditioning: Conditioning, kind: str, isolated: bool) -> dict[str, torch.Tensor]:
        """A prompt as the pipeline is given it: what its connectors make of it, joined; without sound none of its."""
        prompt = conditioning["prompt"]
        empty = (*prompt.shape[:2], self.text_widths[1])
        audio = prompt.new_zeros(empty) if isolated else self._audio_text(conditioning)
        mask = torch.ones(prompt.shape[:2], dtype=torch.int64, device=prompt.device)
        return {
            f"{kind}prompt_embeds": torch.cat([prompt, audio], dim=-1),
            f"{kind}prompt_attention_mask": mask,
        }


FAMILY = LTX2
