"""Wan 2.1 and 2.2, text- and image-to-video, as diffusers has them (WanTransformer3DModel; arXiv 2503.20314).

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma, rounded
down where the folder's scheduler does so. What differs between the models is read from the folder:

- image-to-video (2.1 and 2.2 A14B): the image's latents and a mask stand behind the noisy latents as channels; 2.1 also
  attends to the image's CLIP states.
- two experts (2.2 A14B): see `models/experts.py`.
- first and last frame (2.1 FLF2V, and 2.2 A14B where `model.task` asks for it): the latents are those of a clip that
  is grey between the two, and 2.1 attends to the CLIP states of both, with positions that it has learnt.
- a timestep per token (2.2 TI2V-5B): text-to-video, or with the image as its first latent frame, clean at timestep 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from pgdpo.config.families import FREE, TOY_CARD, Licence, SampleSettings
from pgdpo.config.model import ModelConfig
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.models.encoders.pipeline import VaeFamily
from pgdpo.models.encoders.wan import TEXT_LENGTH, WanEncoders
from pgdpo.models.experts import Experts, has_experts
from pgdpo.models.later import Diffusers, diffusers, no_grad, torch
from pgdpo.models.pictures import MASK_CHANNELS, given_frames, per_token
from pgdpo.models.protocols import Conditioning, Tokens, TokenSharing
from pgdpo.models.weights.kept import computes_in

TASKS = {
    "text_to_video": "WanPipeline",
    "image_to_video": "WanImageToVideoPipeline",
    "first_last_frame_to_video": "WanImageToVideoPipeline",
}
TI2V_FPS = 24.0  # of Wan 2.2 TI2V-5B, by its model card; the other Wan models make 16
TERMS = "https://github.com/Wan-Video/{}/blob/main/LICENSE.txt"
CLIP_TOKENS = 257  # of Wan 2.1's image encoder, ViT-H/14 at 224 pixels
# `sample_neg_prompt` of wan/configs/shared_config.py in Wan-Video/Wan2.1 and Wan2.2.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"  # noqa: RUF001
    "杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)
# Beside it, wan/configs/__init__.py of Wan2.1 (no change of shots) and wan_i2v_14B.py (no shaking camera).
FLF2V_NEGATIVE = "镜头切换，镜头晃动，" + NEGATIVE  # noqa: RUF001
# The example in diffusers' pipeline_wan.py: "5.0 for 720P, 3.0 for 480P". Ours: a size between them takes the nearer's.
WAN21_SHIFTS = {480: 3.0, 720: 5.0}

# The rows of `adapters/comfyui.py`.
LAYERS = (
    (r"blocks\.(\d+)\.attn1\.to_([qkv])", r"blocks.\1.self_attn.\2"),
    (r"blocks\.(\d+)\.attn1\.to_out\.0", r"blocks.\1.self_attn.o"),
    (r"blocks\.(\d+)\.attn2\.to_([qkv])", r"blocks.\1.cross_attn.\2"),
    (r"blocks\.(\d+)\.attn2\.to_out\.0", r"blocks.\1.cross_attn.o"),
    (r"blocks\.(\d+)\.attn2\.add_([kv])_proj", r"blocks.\1.cross_attn.\2_img"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj", r"blocks.\1.ffn.0"),
    (r"blocks\.(\d+)\.ffn\.net\.2", r"blocks.\1.ffn.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"proj_out", "head.head"),
)


class WanSettings(ModelConfig):
    task: Literal["text_to_video", "image_to_video", "first_last_frame_to_video"] | None = Field(
        None,
        description="wan: by default what the folder's model is for. Two do two things: Wan 2.2 TI2V-5B text_to_video "
        "(by default) and image_to_video, Wan 2.2 I2V-A14B image_to_video (by default) and first_last_frame_to_video.",
    )
    expert: Literal["high_noise", "low_noise", "both"] | None = Field(
        None,
        description="wan 2.2 A14B: which of its two transformers trains, on its own share of the noise levels; `both`: "
        "one after the other, or by turns (train.expert_turns), each in a folder of the run's.",
        json_schema_extra={"meant_by": ["experts", "moe"]},
    )
    other_adapter: Path | None = Field(
        None,
        description="wan 2.2 A14B: folder of a LoRA (an export) for the expert that does not train, where clips are "
        "sampled; reference and aligned model both have it, so that they differ by this run alone.",
    )

    def check(self) -> None:
        super().check()
        if self.other_adapter is not None and self.expert is None:
            raise ValueError(
                "model.other_adapter is for one of two experts: set model.expert, or leave it out"
            )
        if self.other_adapter is not None and self.expert == "both":
            raise ValueError(
                "model.other_adapter is for an expert that trains alone, and model.expert is `both`: leave it out, or "
                "set model.expert to high_noise or low_noise"
            )


class Wan(VaeFamily):
    settings = WanSettings
    models = "Wan 2.1 and 2.2, text- and image-to-video"
    pipelines = tuple(dict.fromkeys(TASKS.values()))
    licences = {  # noqa: RUF012
        "Wan-AI/Wan2.1-*": Licence("apache-2.0", TERMS.format("Wan2.1"), terms=FREE, read="2026-11-27"),
        "Wan-AI/Wan2.2-*": Licence("apache-2.0", TERMS.format("Wan2.2"), terms=FREE),
    }
    fps = 16.0  # `export_to_video(fps=)` beside its pipeline in diffusers' documentation
    takes_toy = {"latents": "out_channels", "embeddings": "text_dim"}  # noqa: RUF012
    cards = {  # noqa: RUF012
        # Wan 2.1. Steps and guidance: WanPipeline.__call__'s defaults. The shift follows the size: `WAN21_SHIFTS`.
        "wan": SampleSettings(50, 5.0, negative_prompt=NEGATIVE),
        # Wan-Video/Wan2.1, wan/first_last_frame2video.py: sampling_steps, guide_scale, shift; so diffusers' example.
        "wan21_flf2v_14b": SampleSettings(50, 5.5, None, 16.0, FLF2V_NEGATIVE),
        # Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py: sample_steps, sample_shift, sample_guide_scale (low noise
        # first).
        "wan22_t2v_a14b": SampleSettings(40, 4.0, 3.0, 12.0, NEGATIVE),
        # The same, wan_i2v_A14B.py.
        "wan22_i2v_a14b": SampleSettings(40, 3.5, 3.5, 5.0, NEGATIVE),
        # The same, wan_ti2v_5B.py.
        "wan22_ti2v_5b": SampleSettings(50, 5.0, None, 5.0, NEGATIVE),
    }
    comfyui = LAYERS
    transformer_class = Diffusers("WanTransformer3DModel")
    pipeline_class = Diffusers("WanPipeline")
    vae_class = Diffusers("AutoencoderKLWan")
    encoders_class = WanEncoders
    kept_in_fp32 = "the time embedder in fp32"
    text_length = TEXT_LENGTH
    # A timestep per token goes with its token. Text and image are cross-attended.
    sharing = TokenSharing(
        blocks=("blocks",),
        streams={"video": Tokens(attention="attn1", arguments={"timestep": 1}, ropes={"rope": 1})},
    )

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        index = self.read_index()
        self.expand_timesteps: bool = index.get("expand_timesteps", False)
        self._choose_expert(index.get("boundary_ratio"))
        self._choose_task()
        self._check_widths()
        self._read_timesteps()

    @property
    def card(self) -> str:
        if self.expand_timesteps:
            return "wan22_ti2v_5b"
        if self.model.expert is None:
            return "wan21_flf2v_14b" if -1 in self.pictures else "wan"
        return "wan22_i2v_a14b" if self.image_names else "wan22_t2v_a14b"

    def sampling(self, size: tuple[int, int]) -> SampleSettings:
        found = super().sampling(size)
        if self.card != "wan" or found is TOY_CARD:
            return found
        side = min(WAN21_SHIFTS, key=lambda side: abs(side - min(size)))
        return dataclasses.replace(found, flow_shift=WAN21_SHIFTS[side])

    @property
    def own_fps(self) -> float:
        return TI2V_FPS if self.expand_timesteps and self.model.encoders == "pipeline" else self.model.fps

    def _read_timesteps(self) -> None:
        """Whether the folder's scheduler tells whole timesteps; where a toy's folder has none, UniPC's ways. (Whole or
        not is no matter of shifts; a dynamic one would ask for the number of tokens.)"""
        bare = self.model.encoders == "toy" and Path(self.source).is_dir()
        if bare and not (Path(self.source) / "scheduler").is_dir():
            scheduler = diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True
            )
        else:
            scheduler = self.load_scheduler()
            scheduler = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
        scheduler.set_timesteps(1)
        self.whole_timesteps = not scheduler.timesteps.is_floating_point()
        if self.whole_timesteps:
            self.told_rounded = f"timesteps, to whole ones by {type(scheduler).__name__}"

    def _choose_expert(self, boundary: float | None) -> None:
        """Which transformer trains, and its share of the noise levels."""
        if not has_experts(self.model, boundary):
            return
        self.experts = Experts(
            self.model, self.source, boundary, load=self.load_part, pipeline=self.pipeline_class
        )
        self.transformer_folder, self.sigma_range = self.experts.folder, self.experts.sigma_range

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the folder's model does; the first is what it is taken for where `model.task` says nothing."""
        config = self._architecture
        if self.expand_timesteps:
            return "text_to_video", "image_to_video"
        if config["in_channels"] == config["out_channels"]:
            return ("text_to_video",)
        if not self.uses_clip:  # latents alone: the pipeline takes a last frame too
            return "image_to_video", "first_last_frame_to_video"
        return ("first_last_frame_to_video" if config.get("pos_embed_seq_len") else "image_to_video",)

    def _choose_task(self) -> None:
        config = self._architecture
        task = self.model.task or self.tasks[0]
        if task not in self.tasks:
            known = " or ".join(self.tasks)
            raise self._refused(
                f"model.task is {task!r}, but this model is for {known}: leave model.task out"
            )
        self.pipeline_class = getattr(diffusers, TASKS[task])
        if task == "text_to_video":
            return
        if self.model.encoders == "toy":
            raise self._refused(
                "it starts from an image, which the toy's encoders do not encode: set model.encoders to `pipeline`"
            )
        image_channels = config["in_channels"] - config["out_channels"]
        if image_channels not in (0, MASK_CHANNELS + config["out_channels"]):
            raise self._refused(
                f"its transformer takes {config['in_channels']} channels: what trains is image-to-video from a first "
                "frame, or from a first and a last one"
            )
        self.pictures = (0, -1) if task == "first_last_frame_to_video" else (0,)
        self.image_names = ("image_latents", "image_embeds") if self.uses_clip else ("image_latents",)
        self._check_clip()

    def _check_widths(self) -> None:
        """Raises InputError unless the VAE's latents are as wide as the transformer's."""
        if self.model.encoders == "toy":
            return self.check_toy()
        channels, own = self.latent_shape(1, 0, 0)[0], self._architecture["out_channels"]
        if channels != own:
            raise self._refused(
                f"its VAE's latents have {channels} channels (z_dim), its transformer's {own} (out_channels): take "
                "vae/ and transformer/ of one model"
            )

    def _check_clip(self) -> None:
        folder = Path(self.source)
        missing = [
            f"{name}/" for name in ("image_encoder", "image_processor") if not (folder / name).is_dir()
        ]
        if self.uses_clip and folder.is_dir() and missing:
            raise self._refused(f"its transformer attends to an image and {', '.join(missing)} is missing")

    @property
    def uses_clip(self) -> bool:
        """Whether the transformer attends to the image's CLIP states; copies of the 5B name a width, but have none."""
        return self._architecture.get("image_dim") is not None and not self.expand_timesteps

    def _refused(self, what: str) -> InputError:
        return InputError(f"model.path is {self.model.path!r}: {what}")

    @functools.cached_property
    def vae_shape(self) -> tuple[int, int, int]:
        config = self.vae_class.load_config(self.source, subfolder="vae")
        return config["z_dim"], config.get("scale_factor_temporal", 4), config.get("scale_factor_spatial", 8)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        super().check_size(num_frames, height, width)
        if num_frames == 1 and self.image_names:
            raise InputError(
                "data.num_frames is 1: an image-to-video model is given that frame; take 5 or more"
            )

    def check_positions(self, num_frames: int, height: int, width: int) -> None:
        """The rotary table has `rope_max_seq_len` rows for each axis of the tokens."""
        limit = self._architecture.get("rope_max_seq_len", 1024)
        sizes = {"num_frames": num_frames, "height": height, "width": width}
        latents = self.latent_shape(num_frames, height, width)[1:]
        for (key, size), length, patch in zip(sizes.items(), latents, self.patch, strict=True):
            if length // patch <= limit:
                continue
            most = size // length * limit * patch  # pixels a latent; frames begin with a latent of one
            if key == "num_frames":
                most = (num_frames - 1) // (length - 1) * (limit * patch - 1) + 1
            raise InputError(
                f"data.{key} is {size}: {length // patch} positions, and this transformer's rotary table has {limit} "
                f"(rope_max_seq_len); allowed are at most {most}"
            )

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        config, (channels, frames, height, width) = self._architecture, latent_shape
        shapes = {"prompt": (self.text_length, config["text_dim"])}
        if self.image_names:
            shapes["image_latents"] = (channels, 1 if self.expand_timesteps else frames, height, width)
        if "image_embeds" in self.image_names:
            both = config.get("pos_embed_seq_len")  # tokens of the first and the last frame
            shapes["image_embeds"] = (
                (2, both // 2, config["image_dim"]) if both else (CLIP_TOKENS, config["image_dim"])
            )
        return {name: torch.empty(batch, *shape) for name, shape in shapes.items()}

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """As `Family.timestep`: int64, rounded down, under UniPCMultistepScheduler, which Wan's folders name."""
        timestep = super().timestep(sigma)
        return timestep.long() if self.whole_timesteps else timestep

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return self._predict_at(transformer, noisy, self.timestep(sigma), conditioning)

    def _predict_at(
        self, transformer: Callable, noisy: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The transformer's call as the pipelines make it; `timestep` `[N]`."""
        given = {name: tensor.to(noisy.dtype) for name, tensor in conditioning.items()}
        image = given.get("image_latents")
        if self.expand_timesteps:
            noisy, timestep = per_token(noisy, timestep, image)
        elif image is not None:
            noisy = torch.cat([noisy, given_frames(image, self.pictures), image], dim=1)
        attended = given.get("image_embeds")
        # Of two pictures [N, 2, tokens, D]: the transformer takes them one after the other, and joins them itself.
        clip = {} if attended is None else {"encoder_hidden_states_image": attended.flatten(0, -3)}
        return transformer(
            hidden_states=noisy,
            timestep=timestep,
            encoder_hidden_states=given["prompt"],
            return_dict=False,
            **clip,
        )[0]

    def loss_mask(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor | None:
        """Frame weights `[F]`: the given first frame is no prediction. None where no latent frame is given."""
        if not (self.expand_timesteps and self.image_names):
            return None
        weights = torch.ones(latents.shape[2], device=latents.device)
        weights[0] = 0
        return weights

    @no_grad
    def sample(
        self,
        transformer: torch.nn.Module,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor:
        """The pipelines' loop around `predict`: they would encode the image again, with a VAE beside the transformer.

        With two experts the other one answers on its own share (`expert_at`). `how.guidance_scale_2` is the
        low-noise one's, by default `guidance_scale`, which alone says whether there is guidance.
        """
        scheduler = self.load_scheduler(how.flow_shift)
        scheduler.set_timesteps(how.steps, device=noise.device)
        latents = noise
        for number, timestep in enumerate(scheduler.timesteps):
            sigma = float(timestep) / self.num_train_timesteps
            expert = self.expert_at(transformer, sigma)
            at, noisy = timestep.expand(len(latents)), latents.to(computes_in(expert, latents.device))
            predicted = self._predict_at(expert, noisy, at, conditioning)
            if how.guidance_scale > 1:
                without = self._predict_at(expert, noisy, at, negative)
                scale = self.guidance_at(sigma, how.guidance_scale, how.guidance_scale_2)
                predicted = without + scale * (predicted - without)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            moved(f"denoising step {number + 1} of {len(scheduler.timesteps)}")
        if self.expand_timesteps and self.image_names:
            latents = torch.cat([conditioning["image_latents"], latents[:, :, 1:]], dim=2)
        return latents


FAMILY = Wan
