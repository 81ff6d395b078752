"""The YAML configuration: every key, its default, its unit and its range.

Nothing here imports torch: a wrong key is reported within a fraction of a second.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pgdpo.errors import InputError
from pgdpo.objectives import check_options


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class ToyConfig(Section):
    train_pairs: int = Field(96, ge=1, description="Pairs to train on.")
    held_out_pairs: int = Field(32, ge=1, description="Pairs that are never trained on.")
    seed: int = Field(0, ge=0, description="Another seed gives other clips.")


class DataConfig(Section):
    train: str = Field(
        description="`toy`, or a JSONL manifest with id, prompt, chosen, rejected (paths relative to the manifest)."
    )
    held_out: str | None = Field(
        None, description="Manifest of pairs that are never trained on; `toy` for the toy's."
    )
    toy: ToyConfig = Field(
        default_factory=ToyConfig, description="Size of the toy world, where `toy` is asked for."
    )
    num_frames: int = Field(
        81, ge=1, description="Frames taken from the start of each clip; a shorter one is refused."
    )
    height: int = Field(480, ge=8, description="Pixels; clips are resized to cover and centre-cropped.")
    width: int = Field(832, ge=8, description="Pixels.")
    latent_dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="How latents are stored.")
    pairs_per_shard: int = Field(32, ge=1, description="Pairs in one safetensors shard.")
    caption_dropout: float = Field(0.0, ge=0, lt=1, description="Share of draws that see the empty prompt.")
    workers: int = Field(0, ge=0, description="Loader processes per rank; 0 reads in the training process.")
    segments: int | None = Field(
        None,
        ge=1,
        description="Equal parts in time that errors are kept for, for objectives and metrics per segment; by default "
        "as many as the rows' `segment_labels` (or `tail`), where the objective needs them.",
    )


class AdapterConfig(Section):
    rank: int = Field(64, ge=1, description="LoRA rank.")
    alpha: float = Field(64, gt=0, description="LoRA alpha; the update is scaled by alpha / rank.")
    target_modules: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"],
        description="Names (suffixes) of the linear layers that get an adapter.",
    )


class ModelConfig(Section):
    family: Literal["wan"] = Field("wan", description="Which model class the weights are for.")
    path: str = Field(description="`toy`, a local diffusers folder, or a hub id.")
    encoders: Literal["pipeline", "toy"] = Field(
        "pipeline",
        description="`pipeline`: the folder's own VAE, tokenizer and text encoder; `toy`: patch codec, hashed words.",
    )
    random_init: bool = Field(False, description="Take the architecture only and start from random weights.")
    adapter: AdapterConfig | None = Field(None, description="LoRA; leave it out to train all weights.")
    attention: str = Field(
        "native", description="A diffusers attention backend: native, xformers, flash, ..."
    )
    kernels: Literal["auto", "triton", "eager"] = Field(
        "eager",
        description="Fused ops inside the transformer: triton (or fail), auto (where Triton runs), eager (none).",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")


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


class TrainConfig(Section):
    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    global_batch_pairs: int = Field(16, ge=1, description="Pairs per optimizer step, over all ranks.")
    micro_batch_pairs: int = Field(1, ge=1, description="Pairs per forward on one rank.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="After the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    adam_betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's beta1 and beta2.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping by global norm.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="bf16: parameters stay fp32, matrix products run in bf16 (torch autocast)."
    )
    reference: Literal["auto", "adapter", "frozen"] = Field(
        "auto",
        description="adapter: the same weights with the adapter off; frozen: a second copy; auto: what fits.",
    )
    checkpoint_every: int = Field(
        100, ge=1, description="Steps between checkpoints; the last step always has one."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept.")
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes order, timesteps, noise and initial adapters.")


class EvaluateConfig(Section):
    reward: Literal["toy"] | None = Field(
        None, description="Scores generated clips; `toy` is the toy's true reward."
    )
    num_prompts: int = Field(32, ge=1, description="Held-out prompts that are sampled.")
    samples_per_prompt: int = Field(1, ge=1, description="Clips per prompt, each with its own seed.")
    sampling_steps: int = Field(50, ge=1, description="Denoising steps.")
    guidance_scale: float = Field(5.0, ge=1, description="Classifier-free guidance; 1 switches it off.")
    draws_per_pair: int = Field(8, ge=1, description="Noise levels at which held-out pairs are compared.")
    batch: int = Field(1, ge=1, description="Clips or pairs per forward.")
    fps: float = Field(16, gt=0, description="Frames a second of the clips written.")
    report_clips: int = Field(12, ge=1, description="Prompts shown in the report.")
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes the initial noise, the same for both models.")


class Config(Section):
    name: str | None = Field(
        None, description="Folder of this run inside output_dir; the objective's name by default."
    )
    output_dir: Path = Field(description="Holds prepared data (shared by runs) and one folder per run.")
    data: DataConfig
    model: ModelConfig
    objective: dict[str, Any] = Field(description="`name` and its options; `pgdpo objectives` lists them.")
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @property
    def run_dir(self) -> Path:
        return self.output_dir / (self.name or self.objective["name"])

    @property
    def objective_options(self) -> dict[str, Any]:
        return {key: value for key, value in self.objective.items() if key != "name"}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if "name" not in self.objective:
            raise ValueError("objective: `name` is missing; `pgdpo objectives` lists the names")
        check_options(self.objective["name"], **self.objective_options)
        if self.train.reference == "adapter" and self.model.adapter is None:
            raise ValueError(
                "train.reference is `adapter` but model.adapter is empty: set one, or use `frozen`"
            )
        if self.model.encoders == "pipeline" and self.model.path == "toy":
            raise ValueError(
                "model.path `toy` has no VAE or text encoder of its own: set model.encoders to `toy`"
            )
        return self


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
        min_length=1, description="Label -> options; `name` says which objective, by default the label."
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed must be given once")
        return seeds


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and check a YAML configuration.

    `path`: a file, or the name of one that ships with pgdpo (`quickstart.yaml`).
    `overrides`: `section.key=value` strings; the value is YAML.

    Raises InputError naming the file, the line, the key, the value, what is allowed and the nearest known key.
    """
    file = find_config(path)
    text, raw = _read(file, overrides, Config)
    return _checked(Config, file, text, raw)


def load_study(
    path: str | Path, overrides: list[str] | None = None
) -> tuple[StudyConfig, dict[str, list[Config]]]:
    """Read and check a study: (the study, label -> one configuration per seed).

    The runs' `output_dir` is the study's, their `name` is `<label>-seed<seed>`. Raises InputError as `load_config`
    does, for the study's file and for its base.
    """
    file = find_config(path)
    text, raw = _read(file, overrides, StudyConfig)
    study = _checked(StudyConfig, file, text, raw)
    base = load_config(study.base, study.changes)
    runs = {}
    for label, options in study.objectives.items():
        if not re.fullmatch(r"[\w.-]+", label):
            raise InputError(
                f"{file}: objectives: label {label!r} names folders: letters, digits, `_`, `-`, `.` only"
            )
        shared = base.model_dump() | {"output_dir": study.output_dir, "objective": {"name": label, **options}}
        for seed in study.seeds:
            run = shared | {"name": f"{label}-seed{seed}", "train": {**shared["train"], "seed": seed}}
            runs.setdefault(label, []).append(
                _checked(Config, f"{file}: objectives.{label}, seed {seed}", "", run)
            )
    return study, runs


def _read(file: Path, overrides: list[str] | None, model: type[BaseModel]) -> tuple[str, dict]:
    """(a YAML file's text, its mapping with the overrides applied)."""
    try:
        text = file.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(
            f"{file}: holds {type(raw).__name__}, expected a mapping with the keys {', '.join(model.model_fields)}"
        )
    for override in overrides or []:
        _apply_override(raw, override)
    return text, raw


def _checked(model: type[BaseModel], where: Path | str, text: str, raw: dict):
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = _line_numbers(text)
        raise InputError("\n".join(_explain(model, where, lines, item) for item in error.errors())) from error
    except InputError as error:  # an objective's option
        line = _line_numbers(text).get(("objective",))
        raise InputError(f"{where}{f':{line}' if line else ''}: objective: {error}") from error


def find_config(path: str | Path) -> Path:
    """`path` itself, or the configuration of that name that ships with pgdpo. Raises InputError if neither is there."""
    package = Path(__file__).parent
    shipped = [package.parent / "configs", package / "configs"]  # a checkout, an installed wheel
    for candidate in [Path(path), *(folder / path for folder in shipped)]:
        if candidate.is_file():
            return candidate
    names = sorted({file.name for folder in shipped for file in folder.glob("*.yaml")})
    raise InputError(
        f"{path}: no such configuration file; give a path, or one that ships: {', '.join(names)}"
    )


def _apply_override(raw: dict, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise InputError(
            f"override `{override}`: expected section.key=value, for example train.learning_rate=1e-5"
        )
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise InputError(f"override `{override}`: `{parent}` is a single value and has no key `{leaf}`")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"override `{override}`: `{value}` is not YAML") from error


def _explain(model: type[BaseModel], file: Path | str, lines: dict[tuple, int], error: dict) -> str:
    location = tuple(part for part in error["loc"] if not isinstance(part, str) or part.isidentifier())
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), None)
    where = f"{file}{f':{line}' if line else ''}"
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        return f"{where}: unknown key `{key}`: {hint}allowed here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: key `{key}` is missing: {_describe(model, location)}"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return f"{where}: {message}"
    about = _describe(model, location)
    return f"{where}: `{key}` is {error['input']!r}: {message[0].lower()}{message[1:]}. {about}".rstrip()


def _keys_at(root: type[BaseModel], location: tuple) -> list[str]:
    model = _model_at(root, location)
    return list(model.model_fields) if model else []


def _model_at(root: type[BaseModel], location: tuple) -> type[BaseModel] | None:
    model: type[BaseModel] = root
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return None
    return model


def _describe(root: type[BaseModel], location: tuple) -> str:
    model = _model_at(root, location[:-1])
    field = model.model_fields.get(location[-1]) if model else None
    return field.description or "" if field else ""


def _line_numbers(text: str) -> dict[tuple, int]:
    """Line (from 1) of every key of a YAML text, by its path."""
    lines: dict[tuple, int] = {}

    def walk(node: yaml.Node, path: tuple) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*path, index))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        walk(root, ())
    return lines
