"""The YAML configuration, read and checked; its keys stand in the files beside this one.

Nothing here imports torch: a wrong key is reported within a fraction of a second.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pgdpo.config import Config, StudyConfig
from pgdpo.config.explain import explain, line_of, option_problems
from pgdpo.config.families import families, family_of
from pgdpo.config.yaml_text import read_yaml
from pgdpo.files.locations import expanded
from pgdpo.files.pipeline import pipeline_at
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, did_you_mean, raise_errors

T = TypeVar("T", bound=BaseModel)
TYPED = "command line"  # where a Problem of an override stands


@dataclass(frozen=True)
class Inspection:
    """A configuration as far as it could be read: `loaded` is None where there are errors among `problems`."""

    file: str
    loaded: Config | StudyConfig | None
    problems: list[Problem]
    raw: dict = field(default_factory=dict)  # the file's mapping with the overrides applied
    lines: dict[tuple, int] = field(default_factory=dict)  # of the file's keys, by their path
    typed: frozenset[str] = frozenset()  # keys that stand on the command line

    def problem(self, key: str, what: str, **parts) -> Problem:
        """A Problem at a key (`train.steps`), for what only shows beside the data or the model."""
        line = line_of(self.lines, tuple(key.split(".")))
        return _placed(Problem(self.file, what, key=key, line=line, **parts), self.typed)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and check a YAML configuration.

    `path`: a file, or the name of one that ships with pgdpo (`quickstart.yaml`).
    `overrides`: `section.key=value` strings; the value is YAML.

    Raises InputError with a line for everything that is wrong: the file, the line, the key, the value, what is
    allowed and what to do.
    """
    return _loaded(Config, path, overrides)


def inspect_config(path: str | Path, overrides: list[str] | None = None) -> Inspection:
    """As `load_config`, but what is wrong is returned, not raised."""
    return _inspect(Config, path, overrides)


def load_study(
    path: str | Path, overrides: list[str] | None = None
) -> tuple[StudyConfig, dict[str, list[Config]]]:
    """Read and check a study: (the study, label -> one configuration per seed).

    `base` is looked for beside the study's file first; of its `objective` a label has `parts` alone, unless it has its
    own. The runs' `output_dir` is the study's, their `name` is `<label>-seed<seed>`. Raises InputError as `load_config`
    does, for the study's file and for its base.
    """
    file = find_config(path)
    study = _loaded(StudyConfig, file, overrides)
    beside = file.parent / study.base  # a study that ships means the base that ships with it
    base_file = beside if beside.is_file() else find_config(study.base)
    runs: dict[str, list[Config]] = {}
    for label, options in study.objectives.items():
        if not re.fullmatch(r"[\w.-]+", label):
            raise InputError(
                f"{file}: objectives: label {label!r} names folders: letters, digits, `_`, `-`, `.` only"
            )
        options = dict(options)
        base = load_config(base_file, [*study.changes, *options.pop("changes", [])])
        # How the parts of a sample are put together is of every objective: the base's, where a label says nothing.
        parts = {key: value for key, value in base.objective.items() if key == "parts"}
        shared = base.model_dump() | {"output_dir": study.output_dir}
        shared["objective"] = {"name": label, **parts, **options}
        for seed in study.seeds:
            run = shared | {"name": f"{label}-seed{seed}", "train": {**shared["train"], "seed": seed}}
            config, problems = validated(Config, f"{file}: objectives.{label}, seed {seed}", {}, run)
            raise_errors(problems)
            runs.setdefault(label, []).append(config)
    return study, runs


def _loaded(model: type[T], path: str | Path, overrides: list[str] | None) -> T:
    inspected = _inspect(model, path, overrides)
    raise_errors(inspected.problems)
    return inspected.loaded


def _inspect(model: type[BaseModel], path: str | Path, overrides: list[str] | None) -> Inspection:
    try:
        file = find_config(path)
    except InputError as error:
        what = str(error).removeprefix(f"{path}: ")
        allowed = "a YAML file, or the name of one that ships"
        return Inspection(
            str(path), None, [Problem(str(path), what, "CONFIG", str(path), allowed, "mend the path")]
        )
    raw, lines, problems = read_yaml(file, list(model.model_fields))
    if problems and not raw:
        return Inspection(str(file), None, problems)
    return inspect_mapping(model, str(file), raw, overrides or [], lines, problems)


def inspect_mapping(
    model: type[BaseModel],
    file: str,
    raw: dict,
    overrides: list[str],
    lines: dict[tuple, int] | None = None,
    problems: Sequence[Problem] = (),
) -> Inspection:
    """As `inspect_config`, of a mapping that was read from `file`, with `problems` of its text; `raw` is changed."""
    typed = frozenset(override.partition("=")[0] for override in overrides)
    problems = [*problems, *filter(None, (_apply_override(raw, override) for override in overrides))]
    loaded, found = validated(model, file, lines or {}, raw)
    problems += [_placed(each, typed) for each in found]
    wrong = any(problem.severity == "error" for problem in problems)
    return Inspection(file, None if wrong else loaded, problems, raw, lines or {}, typed)


def covered(key: str, keys: Collection[str]) -> bool:
    """Whether `key` or a section that it is in is one of `keys`."""
    return any(key == known or key.startswith(f"{known}.") for known in keys)


def _placed(problem: Problem, typed: Collection[str]) -> Problem:
    """A value that was typed is not the file's. A message names its key, a section around it, or a key in it."""
    key = problem.key
    if covered(key, typed) or any(covered(each, (key,)) for each in typed):
        return replace(problem, file=TYPED, line=None)
    return problem


def validated(
    model: type[T], where: Path | str, lines: dict[tuple, int], raw: dict
) -> tuple[T | None, list[Problem]]:
    """(a mapping as a checked section, or None; what is wrong with it)."""
    untold: list[Problem] = []
    resolved = raw
    if model is Config:
        resolved, untold = _with_family(where, lines, raw)
        model = Config.of(raw if untold else resolved)
    problems = (
        option_problems(where, lines, raw.get("objective")) if "objective" in model.model_fields else []
    )
    try:
        loaded = model.model_validate(resolved)
        return None if untold else loaded, problems + untold
    except ValidationError as error:
        found = error.errors()
        if untold:  # what a family takes is not known
            found = [each for each in found if each["loc"]]
        if problems:  # pydantic would say the objective's again, with less
            found = [
                each
                for each in found
                if each["loc"][:1] != ("objective",) and "objective: " not in each["msg"]
            ]
        return None, problems + untold + [explain(model, where, lines, each) for each in found]
    except InputError as error:  # of an objective's options, said above, or of a section's own check
        return None, [*problems, *untold] or [Problem(str(where), str(error))]


def _with_family(where: Path | str, lines: dict[tuple, int], raw: dict) -> tuple[dict, list[Problem]]:
    """(`raw` with the family that `model.family: auto` stands for, what is wrong with the model's path).

    Where that is wrong, any family stands there, so that the other sections can be checked.
    """
    section = raw.get("model")
    if not isinstance(section, dict) or section.get("family", "auto") != "auto":
        return raw, []
    path, revision = section.get("path"), section.get("revision")
    if not isinstance(path, str) or not isinstance(revision, str | None):
        return raw, []  # pydantic says it
    problems = []
    try:
        found = pipeline_at(expanded(path), revision, bare=section.get("encoders") == "toy")
        family = family_of(found, path)
    except InputError as error:
        family, place = families()[0], ("model", "path")
        problems = [Problem(str(where), str(error), "model.path", path, line=line_of(lines, place))]
    return {**raw, "model": {**section, "family": family}}, problems


def find_config(path: str | Path) -> Path:
    """`path` itself, or the configuration of that name that ships with pgdpo; says so where a file hides one of these.

    Raises InputError if neither is there.
    """
    ships = shipped_configs().get(str(path))
    file = Path(expanded(str(path)))
    if file.is_file():
        if ships is not None and file.resolve() != ships:
            say_once(f"{path}: the file in {Path.cwd()} is read, not the one that ships under this name")
        return file
    if ships is not None:
        return ships
    if re.match(r"[\w.]+=", str(path)):
        raise InputError(
            f"`{path}` stands where the configuration file belongs; the file comes first, then the changes: FILE {path}"
        )
    ships_too = shipped_configs()
    near = did_you_mean(path, ships_too) or ";"
    raise InputError(
        f"{path}: no such configuration file{near} give a path, or one that ships: {', '.join(ships_too)}"
    )


@functools.cache
def shipped_configs() -> dict[str, Path]:
    """Name -> file of the configurations that ship with pgdpo, whatever lies in the working folder."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"  # of a wheel, of a checkout
    return {file.name: file for file in sorted(folder.glob("*.yaml"))}


def _apply_override(raw: dict, override: str) -> Problem | None:
    """Put one `section.key=value` into `raw`, or say why it can't be."""
    key, separator, value = override.partition("=")
    form = "section.key=value, for example train.learning_rate=1e-5"
    if not separator or not all(key.split(".")):
        what = f"override `{override}`: expected section.key=value"
        return Problem(TYPED, what, key, override, form, "write the key, `=`, and the value, without spaces")
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            what = f"override `{override}`: `{parent}` is a single value and has no key `{leaf}`"
            return Problem(TYPED, what, key, override, form, f"write {parent}=...")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        what = f"override `{override}`: `{value}` is not YAML"
        return Problem(
            TYPED, what, key, value, "a value as in YAML, lists as [a,b]", "close brackets and quotes"
        )
    return None
