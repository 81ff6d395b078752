"""One way to name a run: its folder or its configuration file. What the run fixed comes from its own record.

    run = open_run("runs/al")                                     # or its configuration file, and what was typed
    run = open_run("toy.yaml", ["name=al"], step=100)
    run.config, run.checkpoint, run.step

Three sources meet, the later over the earlier: the record; of the file, what belongs to the command (`evaluate.*`, how
to go about it); the command line. A file's other keys give way to the record, and are named; a key on the command line
that contradicts the record is refused. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from pgdpo.checkpoints.best import best_step, measured
from pgdpo.checkpoints.published import (
    at_step,
    checkpoints_of,
    find_checkpoint,
    step_of,
)
from pgdpo.checkpoints.record import (
    COMMANDS,
    MARK,
    Both,
    Run,
    dumped,
    evaluation_of,
    fixed_of_data,
    identity_of,
    is_free,
    read_record,
    settled,
    with_keys,
)
from pgdpo.config import PARTS, Config
from pgdpo.config.read import Inspection, covered, inspect_config, inspect_mapping
from pgdpo.files.pipeline import is_hub_id
from pgdpo.files.writable import check_writable
from pgdpo.messages.console import say, say_once
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import raise_errors
from pgdpo.models.weights.hub import take

__all__ = [
    "Both",
    "Run",
    "evaluation_of",
    "open_run",
    "open_steps",
    "resumed_config",
    "run_config",
    "runs_in",
    "step_named",
]

MISSING = "not there"
INIT = "model.adapter.init"  # may lie elsewhere, and not begin or cease to be there
MEND = "leave that out, or train it under another `name`"


def open_run(
    named: str | Path | Config,
    overrides: Sequence[str] = (),
    *,
    step: int | str | None = None,
    out: Path | None = None,
) -> Run | Both:
    """The run of a folder or of a configuration file and `overrides`; or of a configuration that is all meant.

    `step`: the checkpoint that is spoken of, by default the newest valid one; of `Both` each expert's own, which may be
    its `best`. `out`: a folder for results, by default the run's own. Raises InputError if there is no such run, step
    or valid checkpoint, for a key of `overrides` that contradicts the run's record, and for a folder that cannot be
    written.
    """
    given = _given(named, overrides)
    folder, out = given.loaded.run_dir, out and out.resolve()
    record = read_record(folder)
    if record is None:
        raise _no_run(folder)
    if record.expert == "both":
        return _open_both(_as_trained(given, record), step, out)
    checkpoint = find_checkpoint(folder, step)
    if checkpoint is None:
        command = f"pgdpo train {folder if isinstance(named, Config) else named} --resume"
        raise InputError(f"{folder}: holds no valid checkpoint: go on with `{command}`")
    run = Run(_as_trained(given, read_record(folder, checkpoint)), checkpoint, out or folder)
    check_writable(run.out)
    return run


def _open_both(config: Config, step: int | str | None, out: Path | None) -> Both:
    parts = []
    for part in config.parts:
        if not checkpoints_of(part.run_dir):
            raise InputError(
                f"{part.run_dir}: not trained yet: go on with `pgdpo train {config.run_dir} --resume`"
            )
        of_part = step_named(part, (), step) if isinstance(step, str) else step
        parts.append(open_run(part, step=of_part, out=out and out / part.expert))
    return Both(config, tuple(parts), out or config.run_dir)


def step_named(named: str | Path | Config, overrides: Sequence[str], wanted: str | None) -> int | str | None:
    """The step that `--step` means: a number, or `best` by the figure of the run's `train.keep_best`, which is said. Of
    a run of both experts `best` is left to `open_run`.

    Raises InputError for any other word, and where no checkpoint was measured.
    """
    if wanted is None or wanted.isdecimal() and int(wanted) > 0:
        return wanted and int(wanted)
    if wanted != "best":
        raise InputError(f"--step is {wanted!r}: expected a step such as 100, or `best`")
    config = run_config(named, overrides, must=True)
    if config.expert == "both":
        return wanted
    figure = config.train.keep_best
    found = {} if figure is None else measured(config.run_dir, figure)
    if not found:
        raise InputError(
            f"{config.run_dir}: no best step: train.keep_best is {figure}, and no checkpoint was measured on held-out "
            "pairs (evaluate.every): name a step"
        )
    best = best_step(config.run_dir, figure)
    say_once(f"best by {figure}: step {best} of {', '.join(map(str, found))}")
    return best


def open_steps(
    named: str | Path, overrides: Sequence[str], wanted: str, *, out: Path | None = None
) -> list[Run]:
    """The run at several steps: `wanted` is `all`, or steps and `best` with commas between them; oldest first."""
    config = run_config(named, overrides)
    if wanted == "all":
        kept = [{step_of(path) for path in checkpoints_of(part.run_dir)} for part in config.parts]
        steps = sorted(set.intersection(*kept))
    else:
        words = wanted.split(",")
        if not all(word.isdecimal() or word == "best" for word in words):
            raise InputError(f"--steps is {wanted!r}: expected `all`, or steps such as 100,200,best")
        steps = sorted({step_named(named, overrides, word) for word in words}, key=str)
    if not steps:
        return [open_run(named, overrides, out=out)]  # says what is missing
    runs = [open_run(named, overrides, step=step, out=out) for step in steps]
    if config.expert == "both":
        return runs
    return [replace(run, config=_commanded_as(runs[-1].config, run.config)) for run in runs]


def _commanded_as(newest: Config, config: Config) -> Config:
    """`config` with what belongs to the command as the newest step has it: all steps are judged alike."""
    wanted = {key for key in dumped(newest).keys() | dumped(config).keys() if covered(key, COMMANDS)}
    merged = with_keys(config.model_dump(mode="json"), newest.model_dump(mode="json"), wanted)
    inspected = inspect_mapping(
        Config, f"{config.run_dir} (its record, as its newest step is judged)", merged, []
    )
    raise_errors(inspected.problems)
    return inspected.loaded


def run_config(named: str | Path | Config, overrides: Sequence[str] = (), *, must: bool = False) -> Config:
    """The configuration that a command goes by: the run's record where there is a run, else what was given.

    `must`: there must be a run if it is named by its folder or by `name=`. Raises InputError as `open_run` does.
    """
    given = _given(named, overrides)
    record = read_record(given.loaded.run_dir)
    if record is not None:
        return _as_trained(given, record)
    if must and (isinstance(named, Config) or Path(named).is_dir() or "name" in given.typed):
        raise _no_run(given.loaded.run_dir)
    return given.loaded


def resumed_config(
    named: str | Path,
    overrides: Sequence[str],
    allowed: Collection[str] = (),
    *,
    step: int | str | None = None,
) -> Config:
    """The configuration to train on with: the record's but for `allowed` keys; what was given, if nothing is saved yet.

    `step`: the checkpoint that is gone on from.

    Raises InputError as `open_run` does.
    """
    given = _given(named, overrides)
    folder = given.loaded.run_dir
    if step is not None and any(checkpoints_of(folder / part) for part in PARTS):
        raise InputError(
            f"--step is {step}, and {folder} is a run of two experts: go back with one of them by `pgdpo train "
            f"{folder / PARTS[0]} --resume --step {step}`, then on with both"
        )
    checkpoint = None if step is None else at_step(folder, step)
    saved = any(checkpoints_of(path) for path in (folder, *(folder / part for part in PARTS)))
    record = read_record(folder, checkpoint) if saved or Path(named).is_dir() else None
    if record is None:
        return given.loaded
    mend = "leave that out, allow it with {0}, or start anew with --restart or another `name`"
    return _as_trained(given, record, allowed, mend=mend)


def runs_in(output_dir: Path) -> list[Path]:
    """Folders of the runs of an `output_dir`, by name."""
    return sorted(
        path
        for path in output_dir.glob("*")
        if (path / MARK).is_file() or (path.is_dir() and checkpoints_of(path))
    )


def _given(named: str | Path | Config, overrides: Sequence[str]) -> Inspection:
    """What the command was given, whether or not there is a run. Raises InputError for what is wrong with it."""
    if isinstance(named, Config):
        every = frozenset(Config.model_fields)
        return Inspection("this configuration", named, [], typed=every)
    if Path(named).name == "config.yaml" and Path(named).with_name(MARK).is_file():
        named = Path(named).parent  # the record itself
    inspected = _of_folder(Path(named), overrides) if Path(named).is_dir() else None
    inspected = inspected or inspect_config(named, list(overrides))
    raise_errors(inspected.problems)
    return inspected


def _of_folder(folder: Path, overrides: Sequence[str]) -> Inspection:
    record = read_record(folder)
    if record is None:
        inside = [path.name for path in runs_in(folder)]
        mend = f"it holds {', '.join(inside)}: name one" if inside else "name a run's, or a configuration"
        raise InputError(f"{folder}: no run: {mend}")
    here = folder.resolve()  # of a link: prepared data lie beside what it names
    depth = record.run_name.count("/")  # of an expert's part one
    place = {"output_dir": str(here.parents[depth]), "name": str(here.relative_to(here.parents[depth]))}
    raw = record.model_dump(mode="json") | place
    moving = [text for text in overrides if text.partition("=")[0] in ("name", "output_dir")]
    if moving:
        raise InputError(
            f"command line: {moving[0]} beside the run's folder {folder}: one of them names the run"
        )
    return inspect_mapping(Config, f"{folder} (the run's record)", raw, list(overrides))


def _no_run(folder: Path) -> InputError:
    there = [path.name for path in runs_in(folder.parent)]
    return InputError(
        f"{folder}: no run: "
        + (f"there are {', '.join(there)} in {folder.parent}" if there else "`pgdpo train` begins one")
    )


def _as_trained(
    given: Inspection, record: Config, allowed: Collection[str] = (), *, mend: str = MEND
) -> Config:
    """The record, with what the command may decide. Says which of the file's keys give way, and which do not."""
    folder = given.loaded.run_dir
    _take_commit(folder, record)
    now, before = dumped(given.loaded), dumped(record)
    differing = {
        key: (before.get(key, MISSING), now.get(key, MISSING))
        for key in sorted(before.keys() | now.keys())
        if before.get(key, MISSING) != now.get(key, MISSING)
        and not settled(key, before.get(key), now.get(key))
    }
    both = record, given.loaded
    free = {key for key in differing if all(is_free(key, config) for config in both) or covered(key, allowed)}
    if {None, MISSING} & {*differing.get(INIT, ())} and not covered(INIT, allowed):
        free.discard(INIT)
    fixed = {key for key in fixed_of_data(record.data, given.loaded.data) if not covered(key, allowed)}
    free = {key for key in free if not covered(key, fixed)}
    typed = {key for key in differing if covered(key, given.typed)}
    if typed - free:
        raise _contradiction(given, {key: differing[key] for key in sorted(typed - free)}, mend)
    stated = differing.keys() & {".".join(map(str, path)) for path in given.lines}
    own = {key for key in stated & free if covered(key, COMMANDS) or covered(key, allowed)}
    _say_which(given, differing, own - typed, stated - own - typed - {"name", "output_dir"})
    merged = with_keys(record.model_dump(mode="json"), given.loaded.model_dump(mode="json"), typed | own)
    merged["output_dir"] = str(given.loaded.output_dir)
    name = given.loaded.run_name
    merged["name"] = None if name == merged["objective"]["name"] else name
    inspected = inspect_mapping(Config, f"{folder} (its record, with what was given)", merged, [])
    raise_errors(inspected.problems)
    return _with_prepared(inspected.loaded, record)


def _take_commit(folder: Path, record: Config) -> None:
    """A run by a hub id goes by the commit that it began with, whatever its branch holds by now."""
    commit = (identity_of(folder) or {}).get("model_commit")
    if commit is not None and is_hub_id(record.model.path):
        take(record.model, commit)
        say_once(f"{record.model.path} at commit {commit}, with which {folder} began")


def _contradiction(given: Inspection, refused: dict[str, tuple], mend: str) -> InputError:
    said = "the command line" if given.lines or not given.typed >= set(Config.model_fields) else given.file
    shown = "; ".join(
        f"its {key} is {before!r}, {said} says {now!r}" for key, (before, now) in refused.items()
    )
    mend = mend.format(" ".join(f"--allow-change {key}" for key in refused))
    return InputError(f"{given.loaded.run_dir}: {shown}: a run stays what it was trained as: {mend}")


def _say_which(given: Inspection, differing: dict[str, tuple], own: set[str], yielding: set[str]) -> None:
    """A line for the keys of the file that are taken, one for those that give way. `differing`: (there, here)."""
    name, run = Path(given.file).name, given.loaded.run_dir
    if own:
        shown = ", ".join(f"{key} {differing[key][1]} ({differing[key][0]})" for key in sorted(own))
        say(f": {shown}", first=f"as {name} says, not as in {run}'s record")
    if yielding:
        shown = ", ".join(f"{key} {differing[key][0]} ({differing[key][1]})" for key in sorted(yielding))
        say(f": {shown}", first=f"as {run} was trained, not as {name} says")


def _with_prepared(config: Config, record: Config) -> Config:
    """The same; where a run was moved alone, with the prepared data beside its old place."""
    if config.data.prepared is not None or config.prepared_dir.exists() or not record.prepared_dir.exists():
        return config
    data = config.data.model_copy(update={"prepared": record.prepared_dir})
    return config.model_copy(update={"data": data})
