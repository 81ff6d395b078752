"""`data`: what is trained on, how it is prepared, which of it is taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pgdpo.config.section import Section
from pgdpo.rows.schema import KEYS

Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=8)]
ROUNDED = 1e-3  # how far from 1 shares may add up, such as three of 0.333


class SourceConfig(Section):
    manifest: str = Field(description="JSONL or Parquet, as a path or a URL.")
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the visits that are of its pairs, in every few steps, whatever their number; all "
        "manifests have one, and they add up to 1, or none has: each pair once an epoch.",
    )
    most: int | None = Field(
        None,
        ge=1,
        description="Rows that are taken: those with the lowest hashes of their ids, whatever their order.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[\w.-]+$",
        description="Under which figures are kept apart: letters, digits, `_`, `-`, `.`; by default the manifest's, "
        "without its ending.",
    )

    @field_validator("manifest")
    @classmethod
    def _no_toy(cls, manifest: str) -> str:
        if manifest == "toy":
            raise ValueError(
                "the toy world stands alone: write `train: toy`, or `./toy` for a file of that name"
            )
        return manifest


class SplitConfig(Section):
    share: float = Field(
        gt=0, lt=1, description="Share of the prompts, and about that of the pairs, that is never trained on."
    )
    by: Literal["prompt"] = Field(
        "prompt",
        description="What decides, by its hash: the prompt, whatever its case, spaces and Unicode form. None stands on "
        "both sides; rows that are added move no other.",
    )


# What stands in the place of a path: tagged, so that an error is told of the one that was meant.
Manifests = Annotated[
    Annotated[str, Tag("a path")] | Annotated[list[SourceConfig], Tag("a list"), Field(min_length=1)],
    Discriminator(lambda value: "a list" if isinstance(value, list) else "a path"),
]
HeldOut = Annotated[
    Annotated[str, Tag("a path")] | Annotated[SplitConfig, Tag("a split")],
    Discriminator(lambda value: "a split" if isinstance(value, (dict, SplitConfig)) else "a path"),
]


class ToyConfig(Section):
    train_pairs: int = Field(96, ge=1, description="Pairs, or groups, to train on.")
    held_out_pairs: int = Field(32, ge=1, description="Pairs, or groups, that are never trained on.")
    seed: int = Field(0, ge=0, description="Another seed gives other clips.")
    samples: int = Field(
        2,
        ge=2,
        le=8,
        description="Clips of a prompt: 2 are a pair, more a group, of which each is damaged further than the one "
        "before; its true reward is the `score`, and ranks it.",
    )
    sound: bool = Field(
        False,
        description="Clips have a tone whose pitch follows the object's height, and rejected ones a faulty picture, a "
        "faulty tone or both.",
    )


# What each rule of data.select reads: (keys it needs, keys it may have).
_SELECT = {
    "duplicates": ((), ()),
    "chosen_score": (("score",), ("least", "low")),
    "margin": (("score",), ("low", "high")),
    "fifa": (("score",), ("keep", "quality", "quality_weight", "diversity_weight", "neighbours")),
    "source": (("sources",), ()),
    "on_policy": (("sources",), ("share",)),
}


class SelectRule(Section):
    by: Literal["duplicates", "chosen_score", "margin", "fifa", "source", "on_policy"] = Field(
        description="duplicates: drop repeated pairs by hash; chosen_score: a least score of the chosen clip; margin: "
        "quantiles of the score margin; fifa: margin + text quality + text entropy; source: by the rows' `source`; "
        "on_policy: a share of pairs from the model itself."
    )
    score: str | None = Field(None, description="Name in the rows' `scores`, or `reward_margin`.")
    least: float | None = Field(None, description="chosen_score: the least score that stays.")
    low: float = Field(0.0, ge=0, le=1, description="Quantile below which pairs are dropped.")
    high: float = Field(1.0, ge=0, le=1, description="margin: quantile above which pairs are dropped.")
    keep: float = Field(0.5, gt=0, le=1, description="fifa: share of the pairs that stays.")
    quality: str | None = Field(None, description="fifa: column with a number for the prompt's quality.")
    quality_weight: float = Field(
        1.0, ge=0, description="fifa: weight of the text quality; the margin's is 1."
    )
    diversity_weight: float = Field(1.0, ge=0, description="fifa: weight of the text entropy.")
    neighbours: int = Field(5, ge=1, description="fifa: k of the k-th nearest prompt.")
    sources: list[str] = Field([], description="source, on_policy: values of the rows' `source`.")
    share: float = Field(
        0.5, gt=0, lt=1, description="on_policy: share of pairs whose source is one of `sources`."
    )

    @field_validator("quality")
    @classmethod
    def _may_be_a_number(cls, quality: str | None) -> str | None:
        key = KEYS.get(quality)
        if key is not None and not key.accepts(1):
            raise ValueError(f"the rows' `{quality}` is {key.allowed}: name a column with a number")
        return quality

    @model_validator(mode="after")
    def _fits(self) -> SelectRule:
        needed, allowed = _SELECT[self.by]
        given = {
            key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default
        }  # a resolved configuration names every key
        missing = [key for key in needed if key not in given]
        if missing:
            raise ValueError(f"`by: {self.by}` needs {', '.join(missing)}")
        foreign = sorted(given - {"by", *needed, *allowed})
        if foreign:
            takes = ", ".join([*needed, *allowed]) or "nothing else"
            raise ValueError(f"`by: {self.by}` takes {takes}, not {', '.join(foreign)}")
        if self.low >= self.high:
            raise ValueError(f"`low` is {self.low:g}, `high` is {self.high:g}: low must be below high")
        return self


class WeightRule(Section):
    by: Literal["rarity", "gap_frequency"] = Field(
        description="rarity: pairs with a rare score margin count more, under any objective; gap_frequency: no factor, "
        "but the column `gap_frequency`, the share of pairs in the same bin, of which `video_dpo` makes its own."
    )
    score: str = Field(description="Name in the rows' `scores`, or `reward_margin`.")
    bins: int = Field(10, ge=2, description="Equal bins of the margin.")
    power: float = Field(1.0, ge=0, description="rarity: the factor goes with share**-power.")

    @model_validator(mode="after")
    def _fits(self) -> WeightRule:
        if self.by == "gap_frequency" and self.power != 1:
            raise ValueError("`by: gap_frequency` takes no power: set objective.rarity_power of `video_dpo`")
        return self


class OrderRule(Section):
    by: Literal["margin", "implicit_reward"] = Field(
        description="What makes a pair easy: margin: a large score margin; implicit_reward: a large margin under an "
        "earlier run, from the file that `pgdpo curate --implicit-rewards` writes."
    )
    score: str | None = Field(None, description="margin: name in the rows' `scores`, or `reward_margin`.")
    file: Path | None = Field(None, description="implicit_reward: the earlier run's implicit_rewards.json.")
    chunks: int = Field(
        6, ge=2, description="Parts of an epoch, from easy to hard, each shuffled (Curry-DPO: 6)."
    )

    @model_validator(mode="after")
    def _fits(self) -> OrderRule:
        wanted, other = ("score", "file") if self.by == "margin" else ("file", "score")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"`by: {self.by}` needs {wanted}, and takes no {other}")
        return self


def spans_of(clip: str) -> int:
    """The N of `segments:N`, 1 of the other ways of `data.clip`."""
    return int(clip.partition(":")[2] or 1)


class DataConfig(Section):
    train: Manifests = Field(
        description="`toy`, or a manifest: JSONL or Parquet with id, prompt, chosen, rejected, as a path or a URL; or "
        "a list of them, for shares and figures by manifest."
    )
    held_out: HeldOut | None = Field(
        None,
        description="Manifest of pairs that are never trained on; `toy` for the toy's; or a share of data.train's "
        "prompts.",
    )
    media_root: Path | None = Field(
        None,
        description="Folder that clips may lie in besides the manifest's own; paths stay relative to the manifest.",
    )
    prepared: Path | None = Field(
        None,
        description="Folder of the prepared data; by default `prepared` in output_dir. A cached reference's errors lie "
        "beside it.",
    )
    ties: Literal["drop", "keep"] = Field(
        "drop",
        description="Pairs whose `preference` is 0.5: `drop` leaves them out, as Diffusion-DPO does; `keep` is for "
        "objectives that read `probability` (smpo, adpo), to which a tie says something.",
    )
    toy: ToyConfig = Field(
        default_factory=ToyConfig, description="Size of the toy world, where `toy` is asked for."
    )
    num_frames: int = Field(
        81, ge=1, description="Frames taken of each clip, at data.fps; a shorter one is refused."
    )
    fps: float | Literal["own"] | None = Field(
        None,
        description="Frames a second that clips are shown to the model at: of a faster clip those nearest in time are "
        "taken. By default what the model was trained for (of LTX what it is told, "
        "model.frame_rate), the toy's 8. `own`: every frame of a clip, whatever its rate.",
        json_schema_extra={"meant_by": ["frame_rate", "rate"]},
    )
    upsample: bool = Field(
        False, description="Repeat frames of clips that are slower than data.fps; else they are refused."
    )
    clip: str = Field(
        "first",
        description="Which num_frames of a longer clip, the same span of both: `first`, `middle`, `random` (one place "
        "per pair, by its id), or `segments:N`: N pairs of each, spread from start to end.",
    )
    height: int = Field(480, ge=8, description="Pixels; clips are resized to cover and centre-cropped.")
    width: int = Field(832, ge=8, description="Pixels.")
    buckets: list[tuple[Count, Pixels, Pixels]] = Field(
        [],
        description="Sizes [frames, height, width] in place of num_frames, height, width: each pair goes to the one of "
        "nearest aspect ratio that its clips are long enough for.",
    )
    on_bad_data: Literal["fail", "skip"] = Field(
        "fail",
        description="Clips and prepared pairs that are damaged or missing: `fail` names the first; `skip` leaves them "
        "out, logs them, and stops when they are more than 1% of the pairs.",
    )
    latent_dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="How latents are stored.")
    select: list[SelectRule] = Field(
        [],
        description="Rules that keep some of the training pairs, one after the other; the others stay prepared.",
    )
    order: OrderRule | None = Field(
        None,
        description="Easy pairs first in every epoch (a curriculum), or, where manifests have shares, in every pass of "
        "each; by default an epoch is shuffled whole.",
    )
    weight: WeightRule | None = Field(
        None,
        description="What a pair's score margin says among all pairs': a factor of its loss, which multiplies the "
        "rows' own, or the column that `video_dpo` reads.",
    )
    pairs_per_shard: int = Field(32, ge=1, description="Pairs in one safetensors shard.")
    caption_dropout: float = Field(0.0, ge=0, lt=1, description="Share of draws that see the empty prompt.")
    workers: int | None = Field(
        None,
        ge=0,
        description="Threads per rank that read pairs ahead, two batches each; 0 reads a pair when it is asked for. By "
        "default 2 beside a GPU, 0 without.",
    )
    segments: int | None = Field(
        None,
        ge=1,
        description="Equal parts in time that errors are kept for, for objectives and metrics per segment; by default "
        "as many as the rows' `segment_labels` (or `tail`), where the objective needs them.",
    )

    @field_validator("fps", mode="before")
    @classmethod
    def _is_a_rate(cls, fps: Any) -> Any:
        number = isinstance(fps, (int, float)) and not isinstance(fps, bool)
        if fps is None or fps == "own" or (number and 0 < fps < 1001):
            return fps
        raise ValueError("a number of frames a second, above 0, or `own` is expected")

    @field_validator("clip")
    @classmethod
    def _is_a_way(cls, clip: str) -> str:
        if not re.fullmatch(r"first|middle|random|segments:[1-9][0-9]{0,2}", clip):
            raise ValueError("`first`, `middle`, `random` or `segments:N`, such as segments:3, is expected")
        return clip

    @property
    def pairs_per_row(self) -> int:
        """Pairs that a row of the manifest gives: the N of `segments:N`."""
        return spans_of(self.clip)

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """All sizes (frames, height, width) that clips are cut to."""
        return self.buckets or [(self.num_frames, self.height, self.width)]

    @property
    def splits_itself(self) -> bool:
        """Whether held-out pairs are a share of data.train's own."""
        return isinstance(self.held_out, SplitConfig)

    @field_validator("train")
    @classmethod
    def _shares_and_names(cls, train: str | list[SourceConfig]) -> str | list[SourceConfig]:
        if isinstance(train, str):
            return train
        shares = [source.share for source in train if source.share is not None]
        if shares and len(shares) < len(train):
            raise ValueError(
                f"{len(shares)} of {len(train)} manifests have a `share`: give all of them one, or none"
            )
        if shares and abs(sum(shares) - 1) > ROUNDED:
            raise ValueError(f"the shares add up to {sum(shares):.6g}: they must add up to 1")
        paths = [source.manifest for source in train]
        if len(set(paths)) < len(paths):
            raise ValueError("each manifest must be given once: its pairs come as often as its `share` says")
        names = [source.name for source in train if source.name is not None]
        if len(set(names)) < len(names):
            raise ValueError("each `name` must be given once")
        return train

    @field_validator("buckets")
    @classmethod
    def _distinct(cls, buckets: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        if len(set(buckets)) < len(buckets):
            raise ValueError("each bucket must be given once")
        return buckets
