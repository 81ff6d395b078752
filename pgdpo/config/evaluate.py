"""`evaluate` and `make`: clips that are sampled and scored, pairs that are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import Field, field_validator

from pgdpo.config.section import Section

NO_HELD_OUT = "data.held_out is empty: name a manifest of pairs that are not trained on"


class EvaluateConfig(Section):
    reward: str | None = Field(
        None,
        description="Scores clips: `toy` (the toy's true reward), or `package.module:function` of an installed "
        "package, called with uint8 frames [F, H, W, 3] and the prompt; a finite number, or a dict of them with "
        "`total`. `check` and `evaluate` first call it once on noise of the first of data's sizes.",
    )
    num_prompts: int = Field(32, ge=1, description="Held-out prompts that are sampled.")
    samples_per_prompt: int = Field(1, ge=1, description="Clips per prompt, each with its own seed.")
    sampling_steps: int | None = Field(
        None, ge=1, description="Denoising steps; by default those of the model's card."
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        description="Classifier-free guidance; 1 switches it off; by default that of the model's card.",
    )
    guidance_scale_2: float | None = Field(
        None,
        ge=1,
        description="wan 2.2 A14B: that of the low-noise expert; by default guidance_scale where that is set, else the "
        "model's card's.",
    )
    flow_shift: float | None = Field(
        None,
        gt=0,
        description="Shift of the noise levels that are sampled at, as diffusion.shift; by default that of the model's "
        "card for the size, else what the pipeline's scheduler does.",
    )
    negative_prompt: str | None = Field(
        None,
        description="What guidance leads away from; by default that of the model's card. `prepare` encodes it beside "
        "the held-out pairs, where earlier ones stay.",
    )
    draws_per_pair: int = Field(8, ge=1, description="Noise levels at which held-out pairs are compared.")
    batch: int = Field(1, ge=1, description="Clips or pairs per forward.")
    fps: float | None = Field(
        None, gt=0, description="Frames a second of the clips written; by default those of data.fps."
    )
    every: int | None = Field(
        None,
        ge=1,
        description="Steps between looks at held-out pairs while training: figures of `every_pairs`, clips of "
        "`every_prompts`, at the last step too; none where it is left out.",
    )
    every_pairs: int | None = Field(
        None,
        ge=0,
        description="Held-out pairs measured by `every`, each at `draws_per_pair` noise levels; by default as many as "
        "take about 5% of the run's time by the plan, 16 at least. The run's record has the number.",
    )
    every_prompts: int = Field(4, ge=0, description="Held-out prompts shown by `every`.")
    report_pairs: int = Field(
        20, ge=1, description="Training pairs shown in the report, as the model receives them."
    )
    report_clips: int = Field(12, ge=1, description="Prompts shown in the report.")
    report_megabytes: float = Field(
        15.0, gt=0, description="Of the report: its clips are shrunk, then left out, to stay below."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes the initial noise, the same for both models.")

    @property
    def shows_clips(self) -> bool:
        """Whether training samples clips on its way."""
        return self.every is not None and self.every_prompts > 0


FrameCorruption = Literal["shuffle", "stutter", "flicker", "tear", "reverse"]
SoundCorruption = Literal["sound_shift", "sound_swap", "sound_clip", "sound_drop"]


class MakeConfig(Section):
    pairs_per_clip: int = Field(1, ge=1, description="Pairs made of each row of the list.")
    renoise: tuple[float, float] = Field(
        (0.5, 0.8),
        description="guided, masked: the sigma up to which a real clip is re-noised, drawn between these.",
    )
    corruptions: list[Literal[FrameCorruption, SoundCorruption]] | None = Field(
        None,
        min_length=1,
        description="corrupt: what may befall a clip; by default each fault of the picture, and of a model that makes "
        "sound each of the sound (`sound_...`).",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes noise, boxes and corruptions.")

    def faults(self, streams: Sequence[str]) -> Sequence[str]:
        """What may befall a clip, for a model that makes `streams`."""
        of_sound = get_args(SoundCorruption) if "audio" in streams else ()
        return self.corruptions or (*get_args(FrameCorruption), *of_sound)

    @field_validator("renoise")
    @classmethod
    def _ordered(cls, renoise: tuple[float, float]) -> tuple[float, float]:
        if not 0 < renoise[0] <= renoise[1] <= 1:
            raise ValueError("expected [low, high] with 0 < low <= high <= 1")
        return renoise
