"""A whole configuration of a run, and of a study: the sections together, and what holds between them.

Nothing here imports torch: a wrong key is reported within a fraction of a second.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, create_model, field_validator, model_validator

from pgdpo.config.data import DataConfig
from pgdpo.config.deepspeed import check_deepspeed_keys
from pgdpo.config.evaluate import EvaluateConfig, FrameCorruption, MakeConfig, SoundCorruption
from pgdpo.config.families import TOY_CARD, families, family_class, sample_settings
from pgdpo.config.model import DiffusionConfig, ModelConfig
from pgdpo.config.section import Section
from pgdpo.config.train import TrainConfig
from pgdpo.files.pipeline import TOYS
from pgdpo.objectives import check_options, get_spec, needs_of
from pgdpo.objectives.parts import Parts

RESERVED = ("prepared", "toy", "reference")  # beside the runs, in output_dir
PARTS = ("high_noise", "low_noise")  # of a run of `model.expert: both`, each in a folder of its name


class Config(Section):
    """A run's configuration. Read by `of`, its `model` has the keys of its family."""

    name: str | None = Field(
        None, description="Folder of this run inside output_dir; the objective's name by default."
    )
    output_dir: Path = Field(description="Holds prepared data (shared by runs) and one folder per run.")
    data: DataConfig
    model: ModelConfig
    objective: dict[str, Any] = Field(
        description="`name` and its options; `pgdpo objectives` lists them. For any with a β also `timestep_weight`: "
        "ω(σ), a factor of β by the drawn noise level: none, flow_dpo ((1 - sigma)^2, of flow models), snr (for a flow "
        "model the same), min_snr, or points [[sigma, weight], ...] of a line. Of sound and picture `parts`: weights, "
        "1 by default, and `form`, one sigmoid (`inside`) or one each (`separate`): {audio: 0.3, form: inside}."
    )
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    make: MakeConfig = Field(default_factory=MakeConfig)

    @staticmethod
    def of(raw: Mapping) -> type[Config]:
        """The class of a mapping that is to be read: with the settings of the family that it names, with those of all
        where it names none that there is."""
        model = raw.get("model")
        named = (
            model.get("family", ModelConfig.model_fields["family"].default)
            if isinstance(model, Mapping)
            else None
        )
        return _with_settings(named if named in families() else None)

    def __reduce__(self) -> tuple:
        """A pickle names the family: its class is made when it is asked for, and stands under no name."""
        return _unset, (None if type(self) is Config else self.model.family,), self.__getstate__()

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str | None) -> str | None:
        folder, _, part = (name or "").rpartition("/")
        own = folder if part in PARTS and folder else name  # the other part's neighbour
        if own is not None and (not own or "/" in own or "\\" in own or own in RESERVED or own[0] == "."):
            raise ValueError(f"a folder's name is expected, without `/`, not one of {', '.join(RESERVED)}")
        return name

    @property
    def fps(self) -> float | None:
        """Frames a second that clips are shown to the model at; None: every frame of a clip."""
        return fps_of(self.data, self.model)

    @property
    def corruptions(self) -> Sequence[str]:
        """What may befall a clip of `pgdpo make corrupt`."""
        of_sound = get_args(SoundCorruption) if "audio" in self.model.streams else ()
        return self.make.corruptions or (*get_args(FrameCorruption), *of_sound)

    @property
    def written_fps(self) -> float:
        """Frames a second of clips that are sampled or decoded again."""
        return self.evaluate.fps or self.fps or self.model.fps

    @property
    def expert(self) -> str | None:
        """Which of a model's two experts trains; None of a model that has one transformer."""
        return getattr(self.model, "expert", None)

    @property
    def run_name(self) -> str:
        return self.name or self.objective["name"]

    @property
    def run_dir(self) -> Path:
        return self.output_dir / self.run_name

    @property
    def prepared_dir(self) -> Path:
        return self.data.prepared or self.output_dir / "prepared"

    def prepared_folder(self, split: str) -> Path:
        """Where the pairs of `train` or `held_out` are prepared to."""
        return self.prepared_dir / split

    @property
    def parts(self) -> list[Config]:
        """The runs that this one is made of: with `model.expert: both` one of each expert, else itself."""
        return [self._of_expert(expert) for expert in PARTS] if self.expert == "both" else [self]

    def _of_expert(self, expert: str) -> Config:
        adapter = self.model.adapter
        if adapter is not None and adapter.init is not None:  # an export of both
            adapter = adapter.model_copy(update={"init": adapter.init / expert})
        model = self.model.model_copy(update={"expert": expert, "adapter": adapter})
        train = self.train.model_copy(update={"expert_turns": None})
        name = f"{self.run_name}/{expert}"
        return self.model_copy(update={"name": name, "model": model, "train": train})

    @property
    def objective_options(self) -> dict[str, Any]:
        return {key: value for key, value in self.objective.items() if key not in ("name", "parts")}

    @property
    def timestep_weight(self) -> str | list[list[float]]:
        """Which omega(sigma) multiplies beta: a form's name, `none` for none, or a table of [sigma, weight]s."""
        return self.objective_options.get("timestep_weight") or "none"

    @property
    def trains_negative_branch(self) -> bool:
        """Whether the trained weights take the place of the unconditional branch in guidance."""
        return get_spec(self.objective["name"]).negative

    @property
    def reference_mode(self) -> str:
        """`train.reference` with `auto` resolved."""
        if self.train.reference != "auto":
            return self.train.reference
        return "frozen" if self.model.adapter is None else "adapter"

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if "name" not in self.objective:
            raise ValueError("objective: `name` is missing; `pgdpo objectives` lists the names")
        check_options(self.objective["name"], **self.objective_options)
        if self.data.splits_itself and self.data.train == "toy":
            raise ValueError(
                "data.held_out is a share of data.train, and that is `toy`, which renders held-out pairs of its own; "
                "allowed: `toy`, a manifest, or nothing"
            )
        self._check_training()
        if self.evaluate.every is not None and self.data.held_out is None:
            raise ValueError(
                f"evaluate.every is {self.evaluate.every}, but data.held_out is empty: name a manifest whose prompts "
                "are shown, or leave evaluate.every out"
            )
        self._check_steering()
        if self.trains_negative_branch:
            self._check_negative_branch()
        if self.train.reference == "adapter" and self.model.adapter is None:
            raise ValueError(
                "train.reference is `adapter` but model.adapter is empty: set one, or use `frozen`"
            )
        self._check_model()
        self._check_parts()
        if self.train.reference == "cached":
            self._check_cached()
        _check_memory(self.model, self.train)
        if self.model.encoders == "pipeline" and self.model.path in TOYS:
            raise ValueError(
                f"model.path `{self.model.path}` has no VAE or text encoder of its own: set model.encoders to `toy`"
            )
        return self

    def _check_training(self) -> None:
        """Raises ValueError where keys of `train` contradict each other."""
        whole = {
            "zero_stage": 0,
            "group_batching": "joint",
            "sequence_parallel": 1,
            "offload_optimizer": "none",
        }
        for key, needed in whole.items():
            found = getattr(self.train, key)
            if self.train.deterministic and found != needed:
                raise ValueError(
                    f"train.deterministic needs every gradient whole on every rank: train.{key} is {found!r}, must be "
                    f"{needed!r}"
                )
        check_deepspeed_keys(
            self.train.deepspeed,
            bf16=self.train.precision == "bf16",
            deterministic=self.train.deterministic,
        )
        every, kept = self.train.checkpoint_every, self.train.keep_every
        if kept is not None and kept % every:
            raise ValueError(
                f"train.keep_every is {kept}, no multiple of train.checkpoint_every ({every}): these steps have no "
                f"checkpoint; set it to {kept // every * every or every} or {(kept // every + 1) * every}"
            )

    def _check_steering(self) -> None:
        """Raises ValueError where a rule of `train.steer` lacks what it goes by, or what it changes."""
        steer = self.train.steer
        looks = [name for name in steer.rules if name != "cap_margin"]
        if looks and (self.evaluate.every is None or self.evaluate.every_pairs == 0):
            raise ValueError(
                f"train.steer.{looks[0]} goes by held-out pairs, and evaluate.every is {self.evaluate.every}, "
                f"evaluate.every_pairs {self.evaluate.every_pairs}: set evaluate.every, or leave the rule out"
            )
        if steer.stop is not None and {steer.stop.patience, steer.stop.displacement, steer.stop.accuracy} == {
            None
        }:
            raise ValueError(
                "train.steer.stop has no limit: set its `patience`, `displacement` or `accuracy`, or leave it out"
            )
        name, options = self.objective["name"], self.objective_options
        if steer.sft_weight is not None and self.trains_negative_branch:
            raise ValueError(
                f"train.steer.sft_weight pulls up what the formula prefers, and `{name}` has the sides swapped: "
                "leave the rule out"
            )
        for key in steer.options.keys() & options.keys():
            raise ValueError(f"objective.{key} is set by train.steer too: leave one of them out")
        check_options(name, **options, **steer.options)
        betas = [rule for rule in steer.rules if rule.endswith("_beta")]
        if betas and "beta" not in get_spec(name).options:
            raise ValueError(f"train.steer.{betas[0]}: objective `{name}` has no beta: leave the rule out")
        if len(betas) == 2 and steer.raise_beta.saturated >= steer.lower_beta.saturated:
            raise ValueError(
                f"train.steer.raise_beta.saturated is {steer.raise_beta.saturated:g}; allowed: below "
                f"lower_beta.saturated, {steer.lower_beta.saturated:g}"
            )

    def _check_model(self) -> None:
        """Raises ValueError for keys of the model that contradict each other, and keys that it has no use for."""
        self.model.check()
        if self.train.expert_turns is not None and self.expert != "both":
            raise ValueError(
                f"train.expert_turns is {self.train.expert_turns}, and model.expert {self.expert!r}: set that to "
                "`both`, or leave expert_turns out"
            )
        if self.evaluate.guidance_scale_2 is not None and self.expert is None:
            raise ValueError(
                "evaluate.guidance_scale_2 is for the second of two experts: set model.expert, or leave it out"
            )
        family = self.model.family
        if self.evaluate.flow_shift is not None and family_class(family).prediction != "flow":
            raise ValueError(
                f"evaluate.flow_shift is for flow matching, model.family is `{family}`, which is none: leave it out"
            )

    def _check_parts(self) -> None:
        """Raises ValueError where what is said of the parts of a sample does not fit the model or the objective."""
        streams, name = self.model.streams, self.objective["name"]
        if len(streams) == 1:
            if "parts" in self.objective:
                raise ValueError(
                    f"objective.parts is of models that make more than one thing, and model.family "
                    f"`{self.model.family}` trains on {streams[0]} alone: leave it out"
                )
            return
        parts = Parts.read(self.objective.get("parts"), streams)
        needs = needs_of(name, **self.objective_options)
        several = f"the model makes {' and '.join(streams)}"
        rate = self.fps or self.model.fps
        if "audio" in streams and self.evaluate.fps not in (None, rate):
            raise ValueError(
                f"evaluate.fps is {self.evaluate.fps:g}, and clips with sound last as long as that: they are written "
                f"at their own {rate:g} frames a second; leave it out"
            )
        if "masked" in needs.pairs:
            raise ValueError(
                f"objective `{name}` compares inside a region of the picture, and {several}: take another objective, "
                "or train on the picture alone (model.audio: false)"
            )
        if needs.cross and parts.form == "inside":
            raise ValueError(
                f"objective.safeguard goes by the product of two residuals, and {several}, of which that has no sum: "
                "set objective.parts.form to `separate`, or leave it out"
            )
        if self.diffusion.inversion_steps is not None:
            raise ValueError(
                f"diffusion.inversion_steps is {self.diffusion.inversion_steps}, and {several}: inversion is written "
                "for one; leave it out, or train on the picture alone (model.audio: false)"
            )

    def _check_negative_branch(self) -> None:
        """Raises ValueError where clips could not be sampled with the trained weights in guidance's other branch."""
        name, adapter = self.objective["name"], self.model.adapter
        first = next(iter(family_class(self.model.family).cards.values()))
        card = TOY_CARD if self.model.encoders == "toy" else first
        scale = sample_settings(self.evaluate, card).guidance_scale
        if self.data.held_out is not None and scale <= 1:
            by_card = "" if self.evaluate.guidance_scale is not None else " by the model's card"
            raise ValueError(
                f"evaluate.guidance_scale is {scale:g}{by_card}, and objective `{name}` trains the unconditional "
                "branch of guidance, which clips are then sampled without: set it above 1"
            )
        if self.evaluate.every is not None and (adapter is None or adapter.reference_starts_at_init):
            raise ValueError(
                f"evaluate.every is {self.evaluate.every}, and objective `{name}` trains the unconditional branch of "
                "guidance: while it trains, the other branch is the model without the adapter; set model.adapter (with "
                "model.adapter.reference: base where it has an init), or leave evaluate.every out"
            )

    def _check_cached(self) -> None:
        """Raises ValueError where the reference's errors alone are not enough."""
        name = self.objective["name"]
        needs = needs_of(name, **self.objective_options)
        if "masked" in needs.pairs:
            raise ValueError(
                f"train.reference is `cached`, which keeps the reference's errors of whole frames, and objective "
                f"`{name}` compares inside a region: use `adapter` or `frozen`"
            )
        if needs.predictions:
            raise ValueError(
                f"train.reference is `cached`, which keeps the reference's errors, and objective `{name}` needs its "
                "predictions: use `adapter` or `frozen`"
            )
        if self.diffusion.inversion_steps is not None:
            raise ValueError(
                "train.reference is `cached` and diffusion.inversion_steps is set: noise that a model finds is not "
                "known beforehand; use `adapter` or `frozen`, or leave inversion_steps out"
            )


@functools.cache
def _with_settings(family: str | None) -> type[Config]:
    """Of a family; None: of all."""
    if family is None:
        every = {family_class(name).settings for name in families()} - {ModelConfig}
        own = create_model("ModelConfig", __base__=tuple(sorted(every, key=lambda kind: kind.__name__)))
    else:
        own = family_class(family).settings
    return create_model(
        "Config", __base__=Config, __module__=__name__, model=(own, Config.model_fields["model"])
    )


def _unset(family: str | None) -> Config:
    """A configuration that a pickle fills."""
    kind = Config if family is None else _with_settings(family)
    return kind.__new__(kind)


def _check_memory(model: ModelConfig, train: TrainConfig) -> None:
    """Raises ValueError where an offload lacks what it needs."""
    for key, target in (("optimizer", train.offload_optimizer), ("parameters", train.offload_parameters)):
        least = {"none": 0, "cpu": 1, "nvme": 3}[target] if key == "optimizer" else 3 * (target != "none")
        if train.zero_stage < least:
            stages = "3" if least == 3 else f"{least} to 3"
            raise ValueError(
                f"train.offload_{key} is `{target}` and train.zero_stage is {train.zero_stage}: DeepSpeed does that "
                f"with stage {stages}; set train.zero_stage, or train.offload_{key} to `none`"
            )
        if target == "nvme" and train.nvme_path is None:
            raise ValueError(
                f"train.offload_{key} is `nvme` and train.nvme_path is empty: name a folder on a local NVMe drive"
            )
    if model.activation_offload and model.gradient_checkpointing == "none":
        raise ValueError(
            "model.activation_offload moves what checkpointed blocks keep, and model.gradient_checkpointing is `none`: "
            "set it to `full` or `selective`"
        )


def fps_of(data: DataConfig, model: ModelConfig) -> float | None:
    """`Config.fps` of its two sections."""
    if data.fps is None:
        return model.fps
    return None if data.fps == "own" else data.fps


class StudyConfig(Section):
    output_dir: Path = Field(
        description="Holds the prepared pairs, a folder per run, study.json and study.png."
    )
    base: str = Field("quickstart.yaml", description="The configuration that every run starts from.")
    changes: list[str] = Field([], description="Changes to it for all runs, such as train.steps=60.")
    seeds: list[int] = Field(
        min_length=1, description="train.seed of the runs: order, timesteps, noise, adapters."
    )
    objectives: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="Label -> options; `name`: its objective; `parts`: by default the base's; `changes`: more changes.",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed must be given once")
        return seeds
