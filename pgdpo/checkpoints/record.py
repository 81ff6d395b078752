"""A run's record: the configuration that it was trained in, and which keys a later command may give.

Every checkpoint holds the configuration that wrote it (`state.json`, hashed with the rest); before the first one there
is `config.yaml`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import (
    MANIFEST,
    checkpoints_of,
    damaged_step,
    has_whole_state,
    read_state,
    step_of,
)
from pgdpo.config import PARTS, Config, DataConfig, TrainConfig
from pgdpo.config.explain import renamed
from pgdpo.config.read import covered, validated
from pgdpo.data.sources import shares_of
from pgdpo.files.atomic import sha256_of
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.messages.formats import is_number
from pgdpo.messages.problems import raise_errors
from pgdpo.objectives.spec import AUTO

MARK = "run.json"  # beside `config.yaml`, which may be anybody's
# Where things lie. What lies there is compared by its hash, so that a run may move.
PLACES = {
    "name",
    "output_dir",
    *(f"data.{key}" for key in ("train", "media_root", "toy", "prepared", "pairs_per_shard")),
    *(f"model.{key}" for key in ("path", "revision", "encoders", "transformer", "adapter.init")),
}
# What belongs to a command: it touches neither a loss nor a weight (`train.steps`: how far a constant schedule goes).
COMMANDS = {
    *(f"data.{key}" for key in ("held_out", "workers", "on_bad_data")),
    *(f"model.{key}" for key in ("attention", "kernels", "gradient_checkpointing", "other_adapter")),
    *(f"model.{key}" for key in ("activation_offload", "compile", "vae_tiling")),
    *(
        f"train.{key}"
        for key in (
            "steps",
            "expert_turns",
            "zero_stage",
            "offload_optimizer",
            "offload_parameters",
            "nvme_path",
            "deepspeed",
        )
    ),
    *(f"train.{key}" for key in ("sequence_parallel", "group_batching", "trackers", "tracker_project")),
    *(
        f"train.{key}"
        for key in ("checkpoint_every", "keep_checkpoints", "keep_every", "keep_best", "watchdog_seconds")
    ),
    *(
        f"train.{key}"
        for key in ("check_memory", "on_bad_step", "max_bad_steps", "spike_factor", "watchdog_seconds")
    ),
    "evaluate",
    "make",
}

# What a steered run's figures hang on.
MEASURED = {
    "data.held_out",
    *(f"evaluate.{key}" for key in ("every", "every_pairs", "draws_per_pair", "batch", "seed")),
}


def is_free(key: str, config: Config) -> bool:
    """Whether a later command may give a key of a trained run: it says where something lies, or how to go about it."""
    if key == "train.steps" and config.train.schedule != "constant":
        return False  # the schedule's end moves, and every learning rate with it
    if config.train.steer.rules and key in MEASURED:
        return False  # other figures would steer otherwise
    return covered(key, PLACES | COMMANDS)


def settled(key: str, before: Any, now: Any) -> bool:
    """Whether a configuration leaves open what a run settled before its first step: `before` is the run's own."""
    left_open = now == AUTO or (key == "evaluate.every_pairs" and now is None)
    return left_open and is_number(before)


def fixed_of_data(before: DataConfig, now: DataConfig) -> set[str]:
    """Free keys that, as a later command gives them, speak of what is trained on: other shares of the manifests, and a
    share of data.train to judge by that a run without it, or with another, was trained on."""
    shares = [list((shares_of(data) or {}).values()) for data in (before, now)]
    return {
        *(["data.train"] if shares[0] != shares[1] else []),
        *(["data.held_out"] if now.splits_itself else []),
    }


def flat(value: Mapping, prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys."""
    found = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            found |= flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found


def dumped(config: Config) -> dict[str, Any]:
    """A configuration as dotted keys and JSON's values."""
    return flat(config.model_dump(mode="json"))


def read_record(folder: Path, checkpoint: Path | None = None) -> Config | None:
    """What a run's folder says of its configuration: `checkpoint`'s, else the newest one's that can be read, else
    `config.yaml`; None where there is no run.

    Raises InputError if `checkpoint` is damaged, or this version of pgdpo doesn't know a key of it.
    """
    if checkpoint is not None:
        if not has_whole_state(checkpoint):
            raise damaged_step(checkpoint, "its state.json is damaged")
        return _validated(checkpoint, read_state(checkpoint))
    for path in reversed(checkpoints_of(folder)):
        if has_whole_state(path):  # of a damaged one is said where checkpoints are read
            return _validated(path, read_state(path))
    file = folder / "config.yaml"
    if not (folder / MARK).is_file() or not file.is_file():
        return None
    try:
        return _validated(file, {"config": yaml.safe_load(file.read_text(encoding="utf-8"))})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read ({error}): bring it back, or begin anew") from error


def is_both(folder: Path) -> bool:
    """Whether a folder is that of a run of both experts, each in a folder of its own in it."""
    return all((folder / part).is_dir() for part in PARTS)


def identity_of(folder: Path, checkpoint: Path | None = None) -> dict | None:
    """The hashes of model, data and rows that a run was trained on, as a checkpoint has them; None without any."""
    paths = [checkpoint] if checkpoint is not None else [*reversed(checkpoints_of(folder))]
    return next((read_state(path).get("identity") for path in paths if has_whole_state(path)), None)


@dataclass(frozen=True)
class Run:
    """A run that was trained. `config`: its record's, with what the command was given; `out`: where results go."""

    config: Config
    checkpoint: Path
    out: Path

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    @cached_property
    def state(self) -> dict:
        """What the checkpoint says beside its tensors: step, configuration, identity, versions."""
        return read_state(self.checkpoint)

    @cached_property
    def record(self) -> Config:
        """The configuration that the checkpoint was trained in, whatever the command was given."""
        return read_record(self.folder, self.checkpoint)

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """What results say of where they come from: the checkpoint by its manifest's hash, the run by when it began."""
        began = next((row["time"] for row in read_events(self.folder) if row["event"] == "started"), None)
        return {"checkpoint_hash": sha256_of(self.checkpoint / MANIFEST)[:16], "began": began}

    @property
    def parts(self) -> tuple[Run, ...]:
        """As `Both` has them: itself alone."""
        return (self,)

    @property
    def step(self) -> int:
        return step_of(self.checkpoint)

    @property
    def evaluation(self) -> Path:
        """Where the results of this step stand."""
        return evaluation_of(self.out, self.step)


@dataclass(frozen=True)
class Both:
    """A run of `model.expert: both`. `parts`: the two experts' runs; `out`: where its own results go."""

    config: Config
    parts: tuple[Run, ...]
    out: Path

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    @property
    def experts(self) -> dict[str, Run]:
        """Each expert's run by its name."""
        return {run.config.expert: run for run in self.parts}

    @property
    def record(self) -> Config:
        """The configuration that it was trained in, whatever the command was given."""
        return read_record(self.folder)

    @property
    def identity(self) -> dict[str, str | None]:
        """As `Run.identity`, of both checkpoints."""
        found = [run.identity for run in self.parts]
        return {
            "checkpoint_hash": "-".join(each["checkpoint_hash"] for each in found),
            "began": found[0]["began"],
        }

    @property
    def step(self) -> int:
        """That both have come to."""
        return min(run.step for run in self.parts)

    @property
    def evaluation(self) -> Path:
        """Where the results of this step stand."""
        return evaluation_of(self.out, self.step)


def evaluation_of(out: Path, step: int) -> Path:
    """Folder of a step's `results.json` and clips."""
    return out / "evaluations" / f"step-{step:08d}"


# What `evaluate` sampled with where nothing was set, before it went by the model's card.
OLD_SAMPLING = {"sampling_steps": 50, "guidance_scale": 5.0}


def without_old_defaults(config: Mapping) -> Mapping:
    """A record from before sampling went by the model's card, without the defaults of then: written down they would
    look as if somebody had set them, and go before a part of what the card says."""
    evaluate = config.get("evaluate")
    if not isinstance(evaluate, Mapping) or "flow_shift" in evaluate:
        return config
    kept = {key: value for key, value in evaluate.items() if OLD_SAMPLING.get(key) != value}
    if kept != evaluate:
        say_once(
            "the run was trained before clips were sampled as the model's card says: steps and guidance that were left "
            "at 50 and 5 then are the card's now (evaluate.sampling_steps, evaluate.guidance_scale)"
        )
    return {**config, "evaluate": kept}


def with_new_names(config: Mapping) -> Mapping:
    """A record from before keys were renamed, under the names of now."""
    train = config.get("train")
    if not isinstance(train, Mapping):
        return config
    names = renamed(TrainConfig)
    return {**config, "train": {names.get(key, key): value for key, value in train.items()}}


def _validated(where: Path, state: Mapping) -> Config:
    config = state.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{where}: says nothing of the configuration it was trained in: begin anew")
    versions = state.get("versions")
    made_by = versions.get("pgdpo") if isinstance(versions, dict) else None
    by = f", made by pgdpo {made_by}" if made_by else ""
    loaded, problems = validated(
        Config, f"{where} (a run's record{by})", {}, without_old_defaults(with_new_names(config))
    )
    raise_errors(problems)
    return loaded


def with_keys(record: dict, given: dict, keys: Collection[str]) -> dict:
    """`record` with the dotted `keys` of `given`; a section that one of them lacks is taken or left whole."""
    for key in sorted(keys):
        node, source = record, given
        *parents, leaf = key.split(".")
        for parent in parents:
            if not isinstance(source.get(parent), dict):  # null where the record has a section
                leaf = parent
                break
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node, source = node[parent], source[parent]
        if leaf in source:
            node[leaf] = source[leaf]
        else:
            node.pop(leaf, None)
    return record
