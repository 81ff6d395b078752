"""LTX-Video, as diffusers has it (LTXVideoTransformer3DModel, T5; arXiv 2501.00103): from text, and from pictures.

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma. The
transformer takes packed tokens; its rotary positions are in pixels and seconds, so it is told the frame rate.

`model.keyframes` names the frames of the clip whose pictures the model is given. Each is encoded as a clip of one
frame, and its tokens stand clean, at timestep 0:

- frame 0 in the place of the first latent frame, of which nothing is learnt (LTXImageToVideoPipeline; its task is
  image_to_video);
- any other frame as tokens before those of the clip, at its own second (LTXConditionPipeline, of 0.9.5 and later). What
  the transformer answers for them is dropped; the clip's own frame there is noisy and learnt like the others.

LTXConditionPipeline has positions of its own, for text alone too: a latent frame stands where its first frame does. Its
`image_cond_noise_scale`, which puts noise on pictures that are told as clean, is 0 in sampling as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pgdpo.config.families import Licence, SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning, Tokens, TokenSharing
from pgdpo.models.steps import step_told

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    from pgdpo.config import DataConfig

TEXT_LENGTH = 128  # the pipelines' max_sequence_length
# The example in diffusers' pipeline_ltx.py, and the model card of Lightricks/LTX-Video.
NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"
CONDITIONS = "LTXConditionPipeline"
# The folder's pipeline -> the frames whose pictures it is given where nothing is set.
PIPELINES = {"LTXPipeline": (), "LTXImageToVideoPipeline": (0,), CONDITIONS: ()}
TASKS = {"text_to_video": (), "image_to_video": (0,), "first_last_frame_to_video": (0, -1)}

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
    task: Literal["text_to_video", "image_to_video", "first_last_frame_to_video"] | None = Field(
        None,
        description="ltx: short for keyframes [], [0] and [0, -1]; by default what the folder's pipeline is for.",
    )
    keyframes: list[Annotated[int, Field(ge=-1)]] | None = Field(
        None,
        description="ltx: frames of the clip whose pictures the model is given: [0] the first (the row's `image`, else "
        "the chosen clip's frame), [0, -1] the last too (`last_image`), [0, 48] any other (of the chosen clip). More "
        "than the first is for LTX-Video 0.9.5 and later.",
    )

    @property
    def fps(self) -> float:
        return super().fps if self.encoders == "toy" else self.frame_rate or super().fps

    def check(self) -> None:
        super().check()
        if self.keyframes is not None and self.task is not None:
            raise ValueError(
                f"model.task is {self.task!r} and model.keyframes is {self.keyframes}: a task is short for keyframes "
                f"({', '.join(f'{name}: {list(frames)}' for name, frames in TASKS.items())}); leave model.task out"
            )
        if len(set(self.keyframes or ())) < len(self.keyframes or ()):
            raise ValueError(f"model.keyframes is {self.keyframes}: name each frame once")


class LTXEncoders(PipelineEncoders):
    readers = (TextReader("T5", TEXT_LENGTH),)

    def __init__(self, family: VaeFamily, device: torch.device) -> None:
        super().__init__(family, device)
        if family.pictures:
            frames = ",".join(map(str, family.pictures))
            self.fingerprint += f":keyframes:{frames}"
            self.parts["clips"]["keyframes"] = frames

    def embed(self, pipeline: LTXPipeline, prompts: list[str]) -> list[Conditioning]:
        """T5's states; padding stands behind the last token and the transformer masks it: it is not stored."""
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=self.device,
        )
        return [{"prompt": row[:n]} for row, n in zip(embeds, mask.sum(1).tolist(), strict=True)]

    @no_grad
    def encode_images(self, pictures: dict[int, np.ndarray], num_frames: int, prompt: str) -> Conditioning:
        """`image_latents` `[C, pictures, H, W]`: of each picture alone, a clip of one frame, in the order of the
        family's `pictures`. They are the means of what the VAE gives, as clips' latents are; the pipelines draw."""
        from PIL import Image

        size = pictures[self.pictures[0]].shape[:2]
        vae = self.open_vae((num_frames, *size), "encoded")  # as the clips that they stand beside
        processor = diffusers.video_processor.VideoProcessor(vae_scale_factor=self.family.vae_shape[2])
        found = []
        for frame in self.pictures:
            pixels = processor.preprocess(Image.fromarray(pictures[frame]), *size).unsqueeze(2)
            encoded = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
            found.append(self.normalize(vae, encoded.mode().float()))
        return {"image_latents": torch.cat(found, dim=2)[0].cpu()}

    def normalize(self, vae: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
        return self.family.pipeline_class._normalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )

    def decode(self, vae: AutoencoderKLLTXVideo, latents: torch.Tensor) -> torch.Tensor:
        latents = self.family.pipeline_class._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        # The pipelines' decode_timestep, at which no noise is added.
        timestep = latents.new_zeros(1) if vae.config.timestep_conditioning else None
        return vae.decode(latents, timestep, return_dict=False)[0]


class LTX(VaeFamily):
    settings = LTXSettings
    models = "LTX-Video 0.9"
    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
    licences = {  # noqa: RUF012
        "Lightricks/LTX-Video*": Licence(
            "other",
            "https://huggingface.co/Lightricks/LTX-Video/tree/main",
            "ltxv-open-weights-license",
            "each version has a file of its own: see there",
        )
    }
    fps = 25.0  # a default of its pipelines
    rate_key = "model.frame_rate"
    cards = {  # noqa: RUF012
        # LTXPipeline.__call__'s defaults; its scheduler shifts by the number of tokens.
        "ltx": SampleSettings(50, 3.0, negative_prompt=NEGATIVE),
        # The example in diffusers' pipeline_ltx_condition.py, which leaves guidance at its pipeline's default.
        "ltx_condition": SampleSettings(40, 3.0, negative_prompt=NEGATIVE),
    }
    comfyui = LAYERS
    transformer_class = Diffusers("LTXVideoTransformer3DModel")
    pipeline_class = Diffusers("LTXPipeline")
    vae_class = Diffusers("AutoencoderKLLTXVideo")
    encoders_class = LTXEncoders
    text_length = TEXT_LENGTH
    masks_text = True
    masked_attention = "attn2"  # to text, which every rank has whole
    # A timestep per token goes with its token, one of a picture too.
    sharing = TokenSharing(
        blocks=("transformer_blocks",),
        streams={"video": Tokens(attention="attn1", arguments={"timestep": 1}, ropes={"rope": 1})},
    )

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        self.frame_rate = model.fps
        self._choose_pictures()
        self.told = (self.frame_rate, *self.pictures)
        if self.conditions:  # earlier versions told such folders the positions of LTXPipeline
            self.told_rounded = f"positions, as {CONDITIONS} has them"

    @property
    def card(self) -> str:
        return "ltx_condition" if self.conditions else super().card

    def _choose_pictures(self) -> None:
        """Of which frames the model is given pictures, and the pipeline that gives it those."""
        own, keyframes, task = self.read_index()["_class_name"], self.model.keyframes, self.model.task
        frames = PIPELINES[own] if task is None else TASKS[task]
        if keyframes is not None:
            frames = tuple(sorted(keyframes, key=lambda frame: (frame == -1, frame)))
        self.pictures = frames
        self.image_names = ("image_latents",) if frames else ()
        self.conditions = own == CONDITIONS or frames not in ((), (0,))
        name = "LTXImageToVideoPipeline" if frames else "LTXPipeline"
        self.pipeline_class = getattr(diffusers, CONDITIONS if self.conditions else name)
        if self.conditions and self.load_scheduler().config.use_dynamic_shifting:
            raise self._refused(
                "its scheduler shifts by the number of tokens (use_dynamic_shifting), as those before 0.9.5 do, and "
                f"{CONDITIONS} tells it none: set model.keyframes to [0] or [], or take a later model, such as "
                "Lightricks/LTX-Video-0.9.5"
            )

    def _refused(self, what: str) -> InputError:
        return InputError(f"model.path is {self.model.path!r}: {what}")

    def check_fps(self, data: DataConfig) -> None:
        if data.fps not in (None, "own", self.frame_rate):
            raise InputError(
                f"data.fps is {data.fps:g} and the model is told {self.frame_rate:g} frames a second "
                f"(model.frame_rate): set model.frame_rate to {data.fps:g} and leave data.fps out"
            )

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """As `VaeFamily.check_size`; the frames whose pictures are given are of the clip, and not all of it."""
        super().check_size(num_frames, height, width)
        last = num_frames - 1
        if self.pictures and last == 0:
            raise InputError(
                f"data.num_frames is 1: the model is given that frame; take {self.vae_shape[1] + 1} or more"
            )
        for frame in self.pictures:
            if frame >= last:  # by its number the last frame would leave the rows' `last_image` unread
                raise InputError(
                    f"model.keyframes is {list(self.pictures)} and data.num_frames is {num_frames}: allowed are 0 to "
                    f"{last - 1}, and -1 for the last frame"
                )

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Tokens that the transformer computes: of the clip, and of pictures that stand beside it."""
        beside = sum(frame != 0 for frame in self.pictures)
        return super().tokens(latent_shape) + beside * super().tokens((latent_shape[0], 1, *latent_shape[2:]))

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        channels, _, height, width = latent_shape
        images = {"image_latents": torch.empty(batch, channels, len(self.pictures), height, width)}
        return {
            "prompt": torch.empty(batch, self.text_length, self._architecture["caption_channels"]),
            "prompt_mask": torch.empty(batch, self.text_length, dtype=torch.bool),
            **(images if self.pictures else {}),
        }

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        pictures = conditioning.get("image_latents")
        prediction = transformer(
            **self._told(noisy, self.timestep(sigma), None if pictures is None else pictures.to(noisy.dtype)),
            encoder_hidden_states=conditioning["prompt"].to(noisy.dtype),
            encoder_attention_mask=conditioning.get("prompt_mask"),
            return_dict=False,
        )[0]
        return self._unpack(prediction[:, -super().tokens(noisy.shape[1:]) :], noisy)

    def _told(self, noisy: torch.Tensor, timestep: torch.Tensor, pictures: torch.Tensor | None) -> dict:
        """Tokens, timesteps and positions, as the pipeline tells them; `timestep` `[N]`."""
        if self.conditions:
            tokens, given, positions = self._tokens(noisy, pictures)
            positions = positions.float()
            positions[:, 0] *= 1 / self.frame_rate
            timestep = timestep[:, None] if given is None else timestep[:, None] * ~given
            return {"hidden_states": tokens, "timestep": timestep, "video_coords": positions}
        if pictures is not None:
            noisy = torch.cat([pictures, noisy[:, :, 1:]], dim=2)
            timestep = timestep[:, None] * ~self._first(noisy)
        frames, height, width = noisy.shape[2:]
        _, temporal, spatial = self.vae_shape
        return {
            "hidden_states": self._pack(noisy),
            "timestep": timestep,
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (temporal / self.frame_rate, spatial, spatial),
        }

    def _tokens(
        self,
        noisy: torch.Tensor,  # [N, C, F, H, W]
        pictures: torch.Tensor | None,  # [N, C, pictures, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """As `LTXConditionPipeline.prepare_latents`: tokens `[N, T, C]` of pictures beside the clip, and of the clip;
        which are given (bool `[N, T]`; None: no picture is); their positions in frames and pixels `[N, 3, T]`."""
        if pictures is None:
            return self._pack(noisy), None, self._positions(noisy)
        length = self.clip_size(noisy.shape[1:])[0]
        placed = dict(zip(self.pictures, pictures.split(1, dim=2), strict=True))
        given = torch.zeros_like(self._first(noisy))
        if (first := placed.pop(0, None)) is not None:
            noisy, given = torch.cat([first, noisy[:, :, 1:]], dim=2), self._first(noisy)
        beside = [self._pack(picture) for picture in placed.values()]
        tokens = torch.cat([*beside, self._pack(noisy)], dim=1)
        positions = [self._positions(picture, frame % length) for frame, picture in placed.items()]
        given = torch.nn.functional.pad(given, (tokens.shape[1] - given.shape[1], 0), value=True)
        return tokens, given, torch.cat([*positions, self._positions(noisy)], dim=2)

    def _first(self, latents: torch.Tensor) -> torch.Tensor:
        """bool `[N, tokens]`: those of the first latent frame."""
        mask = torch.zeros_like(latents[:, :1], dtype=torch.bool)
        mask[:, :, : self.patch[0]] = True
        return self._pack(mask)[..., 0]

    def _positions(self, latents: torch.Tensor, frame: int = 0) -> torch.Tensor:
        """`[N, 3, tokens]` of latents that begin at that frame: frame, row and column of the clip's pixels."""
        _, temporal, spatial = self.vae_shape
        frames, height, width = latents.shape[2:]
        ids = self.pipeline_class._prepare_video_ids(
            len(latents), frames, height, width, *self._patches(), latents.device
        )
        return self.pipeline_class._scale_video_ids(ids, spatial, temporal, frame, latents.device)

    def loss_mask(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor | None:
        """Frame weights `[F]`: the given first frame is no prediction. None where no latent frame is given."""
        if 0 not in self.pictures:
            return None
        weights = torch.ones(latents.shape[2], device=latents.device)
        weights[0] = 0
        return weights

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
        """Through the pipeline's own loop, begun from latents that the pictures stand in already."""
        _, temporal, spatial = self.vae_shape
        frames, height, width = noise.shape[2:]
        pipeline = self.pipeline_class(
            self.load_scheduler(how.flow_shift), VaeSizes(temporal, spatial), None, None, transformer
        )
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            prompt_embeds=conditioning["prompt"],
            prompt_attention_mask=conditioning["prompt_mask"],
            negative_prompt_embeds=negative["prompt"],
            negative_prompt_attention_mask=negative["prompt_mask"],
            height=height * spatial,
            width=width * spatial,
            num_frames=(frames - 1) * temporal + 1,
            frame_rate=self.frame_rate,
            num_inference_steps=how.steps,
            guidance_scale=how.guidance_scale,
            callback_on_step_end=step_told,
            output_type="latent",
            **self._start(pipeline, noise, conditioning.get("image_latents"), how),
        ).frames
        return latents if self.conditions else self._unpack(latents, noise)

    def _start(
        self, pipeline, noise: torch.Tensor, pictures: torch.Tensor | None, how: SampleSettings
    ) -> dict:
        """What the pipeline is told to begin from `noise` and the pictures' latents."""
        if not self.conditions:
            first = noise if pictures is None else torch.cat([pictures, noise[:, :, 1:]], dim=2)
            return {"latents": self._pack(first)}
        tokens, given, positions = self._tokens(noise, pictures)
        mask = None if given is None else given.float()
        beside = tokens.shape[1] - super().tokens(noise.shape[1:])
        # Its own draws the noise and encodes the pictures.
        pipeline.prepare_latents = lambda *_, **__: (tokens, mask, positions, beside)
        told = {"image_cond_noise_scale": 0.0, **({} if pictures is None else {"conditions": []})}
        if how.flow_shift is not None:
            # Its scheduler would shift the levels, and not what the model is told of them.
            schedule = diffusers.pipelines.ltx.pipeline_ltx_condition.linear_quadratic_schedule(how.steps)
            shifted = how.flow_shift * schedule / (1 + (how.flow_shift - 1) * schedule)
            pipeline.scheduler = self.load_scheduler(1.0)
            told["timesteps"] = (shifted * self.num_train_timesteps).tolist()
        return told


@dataclass(frozen=True)
class VaeSizes:
    """All that the pipelines ask of a VAE that nothing goes through."""

    temporal_compression_ratio: int
    spatial_compression_ratio: int
    dtype: torch.dtype | None = None


FAMILY = LTX
