"""`model` and `diffusion`: what is trained, and where on the way to noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pgdpo.config.families import families, family_class
from pgdpo.config.section import Section

TOY_FPS = 8.0  # of the toy world's clips


class AdapterConfig(Section):
    rank: int = Field(64, ge=1, description="LoRA rank.")
    alpha: float = Field(64, gt=0, description="LoRA alpha; the update is scaled by alpha / rank.")
    target_modules: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"],
        min_length=1,
        description="Names (suffixes) of the linear layers that get an adapter.",
    )
    init: Path | None = Field(
        None,
        description="A LoRA to start from: a safetensors file or a folder that holds one (an export), under diffusers' "
        "or the original repository's names (ComfyUI's); of `rank` or less, and for target_modules alone.",
        json_schema_extra={"meant_by": ["path", "weights", "lora"]},
    )
    reference: Literal["init", "base"] = Field(
        "init", description="With `init`, the reference is: that LoRA, frozen, or the model without it."
    )

    @property
    def reference_starts_at_init(self) -> bool:
        return self.init is not None and self.reference == "init"


class ModelConfig(Section):
    """What every family has; a family's `settings` have its own keys besides."""

    family: Literal[("auto", *families())] = Field(  # type: ignore[valid-type]
        "auto",
        description="Which model class the weights are for; `auto`: that of the pipeline at `path`. Where that can't "
        "be read when the configuration is, as without a network, name it.",
    )
    path: str = Field(description="`toy`, `toy_sound`, a local diffusers folder, or a hub id.")
    revision: str | None = Field(
        None,
        min_length=1,
        description="With a hub id: the branch, tag or commit to take; by default its main branch. A run goes on, and "
        "is evaluated and exported, with the commit that it began with.",
    )
    encoders: Literal["pipeline", "toy"] = Field(
        "pipeline",
        description="`pipeline`: the folder's own VAE, tokenizer and text encoder; `toy`: patch codec, hashed words.",
    )
    random_init: bool = Field(False, description="Take the architecture only and start from random weights.")
    transformer: Path | None = Field(
        None,
        description="Folder of transformer weights to start from in place of the path's own, such as a merged export; "
        "the rest of the pipeline is path's.",
        json_schema_extra={"meant_by": ["merged", "weights"]},
    )
    adapter: AdapterConfig | None = Field(None, description="LoRA; leave it out to train all weights.")
    vae_tiling: Literal["auto", "whole", "tiled"] = Field(
        "auto",
        description="Clips go through the VAE `whole`, as the pipelines take them, or `tiled`, which needs less memory "
        "and gives other latents; `auto`: tiled where a whole clip doesn't fit the memory that is free, which is said. "
        "Prepared data stay as they are, unless this names the other way.",
        json_schema_extra={"meant_by": ["tiling", "enable_tiling"]},
    )
    attention: str = Field(
        "native",
        description="A diffusers attention backend: native, xformers, flash, ... ltx: attention to text stays native.",
    )
    reference_attention: str | None = Field(
        None,
        description="Another backend for the reference in training, such as sage, which has no backward; the first "
        "step's margin is then not exactly 0.",
    )
    kernels: Literal["auto", "triton", "eager"] = Field(
        "eager",
        description="Fused ops inside the transformer: triton (or fail), auto (where Triton runs), eager (none).",
    )
    gradient_checkpointing: Literal["none", "full", "selective"] = Field(
        "none",
        description="What the backward pass recomputes of each block: nothing, all, or all but attention's outputs.",
    )
    activation_offload: bool = Field(
        False,
        description="Keep the checkpointed blocks' inputs in the host's memory until the backward pass.",
    )
    compile: Literal["none", "inductor", "aot_eager"] = Field(
        "none",
        description="torch.compile of the repeated blocks, by backend; aot_eager traces and generates no code.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys_of_others(cls, raw: Any) -> Any:
        """Empty, a key that only other families have says nothing; in records of before all of them stand so."""
        if not isinstance(raw, Mapping):
            return raw
        empty = {key for key, value in raw.items() if value is None} - cls.model_fields.keys()
        empty &= {key for family in families() for key in family_class(family).settings.model_fields}
        return {key: value for key, value in raw.items() if key not in empty}

    @property
    def fps(self) -> float:
        """Frames a second that the model was trained for, as its family's pipelines have it."""
        if self.encoders == "toy":
            return TOY_FPS
        return family_class(self.family).fps

    @property
    def streams(self) -> tuple[str, ...]:
        """What the model makes of which the loss counts, as its family's class has it (`Family.streams`)."""
        return family_class(self.family).streams

    def check(self) -> None:
        """Raises ValueError where keys of this section contradict each other."""
        if self.transformer is not None and self.random_init:
            raise ValueError(
                f"model.transformer is {str(self.transformer)!r} and model.random_init is true: weights are read or "
                "drawn; leave one of them out"
            )
        if self.encoders == "toy" and not family_class(self.family).takes_toy:
            takers = [name for name in families() if family_class(name).takes_toy]
            raise ValueError(
                f"model.encoders is `toy` and model.family is `{self.family}`: they stand for those of "
                f"{', '.join(takers)} alone; use `pipeline`"
            )


class DiffusionConfig(Section):
    timestep_sampling: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="Distribution of sigma."
    )
    logit_mean: float = Field(0.0, description="Mean of logit(sigma), for logit_normal.")
    logit_std: float = Field(1.0, gt=0, description="Standard deviation of logit(sigma), for logit_normal.")
    shift: float = Field(
        1.0, gt=0, description="sigma -> shift*sigma / (1 + (shift-1)*sigma), after sampling."
    )
    inversion_steps: int | None = Field(
        None,
        ge=1,
        le=10,
        description="Forwards that the model spends on inverting each clip to its noise, in place of drawn noise; "
        "for inpo, smpo, inversion_dpo.",
    )
