"""`pgdpo init`: a shipped configuration as a file of one's own, its comments kept, fitted to clips and GPUs."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from pgdpo.config import Config, TrainConfig
from pgdpo.config.families import check_family, family_of, licence_said
from pgdpo.config.read import load_config, shipped_configs
from pgdpo.files.atomic import atomic_path
from pgdpo.files.pipeline import INDEX, configurations, is_hub_id, pipeline_at
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.objectives import needs_of
from pgdpo.recipes.propose import form_of, look, propose


def write_and_say(model: str, out: Path, **options) -> None:
    """`pgdpo init`: write `out` and print what was found, changed and comes next; `options` as `init` takes them."""
    options["where"] |= {"mfu": 0.35, "disk_gb_per_s": 1.0}
    begun = init(model, out, **options)
    for line in (*begun.found, *begun.notes):
        say(line)
    for key, value in begun.changed.items():
        say(f"  {key}: {value}")
    say(f"written -> {out}; next, in this order:")
    for command in begun.next:
        say(f"  {command}")


@dataclass(frozen=True)
class Begun:
    """A configuration that was written."""

    file: Path
    changed: dict[str, object]  # keys that differ from the shipped one
    found: list[str]  # lines: what clips there are
    notes: list[str]  # what they mean for the run, and whether it fits the GPUs
    next: list[str]  # the commands that follow, up to an evaluation


def models() -> list[str]:
    """The shipped configurations of models, without `.yaml`."""
    return sorted(
        file.stem
        for file in shipped_configs().values()
        if not file.stem.startswith(("quickstart", "toy_base"))
        and "base:" not in file.read_text(encoding="utf-8")
    )


def init(
    model: str,
    out: Path,
    *,
    path: str | None = None,
    train: str | None = None,
    held_out: str | None = None,
    media_root: Path | None = None,
    where: dict,
    force: bool = False,
) -> Begun:
    """Write `out`: the configuration of `model` with the model's folder and the manifests put in.

    `model`: a shipped configuration's name, or a model's folder or hub id, for which the one is taken whose model it is
    most like.

    `train`, `held_out`: manifests; the latter may be a share of the former. Rate, frames and sizes are those that suit
    their clips (`propose.py`); without them, the model's own. Where the model's architecture can be read, the run is
    planned for `where` (as `planning.hardware.machine` takes it), and where it doesn't fit, the change that makes it
    fit at the least time is made. Raises InputError for a model that is not known, an `out` that is there, rows that
    `pgdpo check` would refuse, sizes that the model does not take, GPUs that cannot share its work, and a run that no
    change makes fit.
    """
    if model not in models():
        model, path = shipped_like(model), path or model
    if out.exists() and not force:
        raise InputError(f"{out}: there is one already: name another file, or replace it with --force")
    if train is None and (held_out is not None or media_root is not None):
        raise InputError("--held-out or --media-root is given without --train: name the manifest to train on")
    if path is not None and (Path(path) / INDEX).is_file():
        check_family(_with(model, {}).model.family, pipeline_at(path), path)
    text = shipped_configs()[f"{model}.yaml"].read_text(encoding="utf-8")
    changed: dict[str, object] = {"output_dir": f"runs/{out.stem}"}
    changed |= {} if path is None else {"model.path": path}
    found, notes = [], []
    if train is not None:
        split = share_or_manifest(held_out)
        changed |= {"data.train": train, "data.held_out": split}
        changed |= {} if media_root is None else {"data.media_root": str(media_root)}
        config = _with(model, changed)
        survey = look([each for each in (train, split) if isinstance(each, str)], config)
        proposal = propose(survey, config, form_of(config, _with(model, {})))
        changed |= proposal.settings
        found, notes = list(survey.lines()), proposal.notes
        if split is None:
            notes.append(
                "no pairs are held out: `pgdpo evaluate` needs some (--held-out, a manifest or a share)"
            )
    batch = _batch_that_splits(_with(model, changed).train, where["gpus"])
    if batch:
        changed |= batch
        notes.append(f"the pairs of a step are as many as {where['gpus']} GPUs can share equally")
    fitted, note = _fitted(_with(model, changed), where)
    changed |= fitted
    for key, value in changed.items():
        text = set_key(text, key, value)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    config = load_config(out.absolute())  # what was written is what a command would read
    notes += [
        f"made of {model}.yaml; licence of {config.model.path}: {licence_said(config.model.family, config.model.path)}",
        note,
    ]
    return Begun(out, changed, found, notes, next_commands(config, out, where["gpus"], where["nodes"]))


def shipped_like(path: str) -> str:
    """The shipped configuration whose model is most like the one at `path`: of its family, with the most entries of
    the pipeline's and the transformer's configuration alike. Raises InputError for what is no model that trains."""
    if not Path(path).exists() and not is_hub_id(path):
        raise InputError(
            f"MODEL is {path!r}; there are {', '.join(models())}; or give a model's folder or hub id"
        )
    family = family_of(pipeline_at(path), path)
    own = _entries(path)
    alike = {}
    for name in models():
        shipped = _with(name, {}).model
        if shipped.family == family:
            alike[name] = len(own & _entries(shipped.path))
    return max(alike, key=alike.__getitem__)


def _entries(path: str) -> set[tuple[str, str]]:
    """Of the configuration files of a model: `(key, value)`."""
    return {
        (key, json.dumps(value))
        for config in configurations(path)
        for key, value in config.items()
        if key != "_diffusers_version"
    }


def next_commands(config: Config, file: Path, gpus: int, nodes: int) -> list[str]:
    """What is typed after `init`, in its order; what computes with the model is started on all of the GPUs."""
    name, launch = shlex.quote(str(file)), "pgdpo"
    if gpus > 1:
        several = f"--nnodes {nodes} --node-rank NODE --master-addr FIRST_NODE " if nodes > 1 else ""
        launch = f"torchrun {several}--nproc-per-node {gpus // nodes} -m pgdpo"
    needs_reference = needs_of(config.objective["name"], **config.objective_options).reference
    commands = [f"pgdpo check {name}", f"pgdpo prepare {name}"]
    if needs_reference and config.reference_mode == "cached":
        commands.append(f"{launch} reference {name}")
    commands.append(f"{launch} train {name}")
    if config.data.held_out is not None:
        commands.append(f"{launch} evaluate {name}")
    return commands


def share_or_manifest(held_out: str | None) -> str | dict[str, float] | None:
    """`data.held_out` as --held-out means it: `0.05` is a share of the training manifest's prompts."""
    try:
        return None if held_out is None else {"share": float(held_out)}
    except ValueError:
        return held_out


def _with(model: str, changed: dict[str, object]) -> Config:
    """The shipped configuration of `model` with some keys changed."""
    shipped = shipped_configs()[f"{model}.yaml"]
    return load_config(shipped, [f"{key}={json.dumps(value)}" for key, value in changed.items()])


def _batch_that_splits(train: TrainConfig, gpus: int) -> dict[str, object]:
    """The nearest `train.global_batch_groups` that splits over the GPUs; empty where the configuration's does."""
    chunk = train.micro_batch_groups * max(1, gpus // train.sequence_parallel)
    nearest = max(1, round(train.global_batch_groups / chunk)) * chunk
    return {} if train.global_batch_groups % chunk == 0 else {"train.global_batch_groups": nearest}


def _fitted(config: Config, where: dict) -> tuple[dict[str, object], str]:
    """(settings that make the run fit, what was found)."""
    from pgdpo.messages.units import size_text
    from pgdpo.planning.advice import changes_that_fit, explain
    from pgdpo.planning.hardware import machine
    from pgdpo.planning.plan import Planner
    from pgdpo.planning.published import open_to_plan

    on = machine(**where)
    try:
        opened = open_to_plan(config.model)
    except InputError as error:  # the model may be somewhere else
        return {}, f"not fitted to the GPUs: {error}"
    planner = Planner(config, opened=opened)
    plan = planner.plan(config, on)
    note = f" ({planner.note})" if planner.note else ""
    if plan.fits:
        return {}, f"fits: {size_text(plan.memory.peak)} of {size_text(on.memory)} on each GPU{note}"
    changes = changes_that_fit(planner, config, on)
    if not changes:
        raise InputError(explain(plan, changes))
    best = changes[0]
    return (
        best.settings,
        f"fits with them: {size_text(best.plan.memory.peak)} of {size_text(on.memory)} on each GPU{note}",
    )


def set_key(text: str, key: str, value: object) -> str:
    """`text` with `section.key` (or a top-level key) set to `value`; comments and all other lines stay."""
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    *sections, name = key.split(".")
    lines = text.split("\n")
    start, end = (0, len(lines)) if not sections else _section(lines, sections[0])
    pattern = re.compile(rf"^{'  ' if sections else ''}{re.escape(name)}:\s*([^#]*?)(\s*#.*)?$")
    for number in range(start, end):
        if match := pattern.match(lines[number]):
            indent = "  " if sections else ""
            lines[number] = f"{indent}{name}: {written}{match[2] or ''}"
            return "\n".join(lines)
    lines.insert(start, f"{'  ' if sections else ''}{name}: {written}")
    return "\n".join(lines)


def _section(lines: list[str], name: str) -> tuple[int, int]:
    """First line in a top-level section, and the line after its last one. An absent section is appended."""
    heads = [number for number, line in enumerate(lines) if re.match(r"^\w+:", line)]
    for place, number in enumerate(heads):
        if lines[number].startswith(f"{name}:"):
            following = heads[place + 1] if place + 1 < len(heads) else len(lines)
            return number + 1, following
    while lines and not lines[-1].strip():
        lines.pop()
    lines += ["", f"{name}:", ""]
    return len(lines) - 1, len(lines) - 1
