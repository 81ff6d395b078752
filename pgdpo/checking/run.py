"""The check from end to end: configuration, rows, clips, model; a table, JSON, an exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pgdpo.checking.clips import clip_problems, clips_of, inspect_clips, views_of
from pgdpo.checking.findings import Findings, show
from pgdpo.checking.mend import mend
from pgdpo.checking.rows import (
    amount_problems,
    column_problems,
    curation_problems,
    place_problems,
    preference_problems,
    share_problems,
    split_problems,
    toy_rows,
)
from pgdpo.checking.show import check_page, write_pairs
from pgdpo.checking.sounds import heard_in, sound_problems
from pgdpo.config import Config, DataConfig
from pgdpo.config.evaluate import NO_HELD_OUT
from pgdpo.config.read import Inspection, inspect_config
from pgdpo.data.bad import are_skipped, too_many
from pgdpo.data.buckets import Size
from pgdpo.data.clips import Sampling, views_said
from pgdpo.data.preparing.sounds import sounds_said
from pgdpo.data.sources import scan_sources, sources_of, take
from pgdpo.diffusion.streams import AUDIO
from pgdpo.files.atomic import write_json
from pgdpo.files.locations import plain
from pgdpo.messages.console import progress_bar, say
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.objectives import needs_of
from pgdpo.objectives.parts import Parts
from pgdpo.rows.dimensions import label_notes
from pgdpo.rows.manifest import PICTURES, CheckedRow

SPLITS = ("train", "held_out")


def run_check(
    config_path: str,
    overrides: list[str] | None = None,
    *,
    fix: str | None = None,
    json_file: Path | None = None,
    page: Path | None = None,
    full: bool = False,
) -> Findings:
    """Check a configuration and its data, print a table, and write `json_file` if there is one.

    `fix`: a new manifest of what is sound in data.train, or can be made so. `page`: an HTML file that shows some pairs
    as shot and as the model will see them. `full`: hold prepared data against the hashes of all clips and of their own
    files, also of those whose name, size and time are as they were. No weight is loaded, and torch not before
    configuration and rows are without errors. Raises InputError for options that cannot be.
    """
    if page is not None:
        check_page(page)
    inspected = inspect_config(config_path, overrides)
    config = inspected.loaded
    findings = Findings(config_path, inspected.problems)
    data = _mapping(inspected.raw.get("data"))
    named = config.data if config is not None else _as_far_as_readable(data)
    if fix is not None:
        _one_manifest(named, known=config is not None)
    _check_rows(findings, inspected, named)
    _check_clips(findings, inspected, data, mended=fix is not None)
    if config is not None:
        _check_model(findings, inspected, full)
    else:
        findings.skipped.append("sizes, token lengths and prepared data: mend the configuration first")
    if fix is not None:
        _fix(findings, fix, config, data, named)
    if page is not None:
        _show_pairs(findings, config, page)
    show(findings)
    if json_file is not None:
        write_json(json_file, findings.as_json())
        say(f"all of it as JSON -> {json_file}")
    return findings


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _check_rows(findings: Findings, inspected: Inspection, named: DataConfig) -> None:
    """The manifests' rows, also where the rest of the configuration is wrong."""
    config, toy = inspected.loaded, Path("toy")
    for split in SPLITS:
        if getattr(named, split) in (None, "toy"):
            continue
        if split == "train" or not named.splits_itself:
            scanned = scan_sources(named, split, toy)
            findings.problems += scanned.problems
            findings.scanned[split] = scanned.rows
        findings.rows[split], problems = take(scanned, named, split, say)
        if not any(problem.severity == "error" for problem in scanned.problems):
            findings.problems += [each for each in problems if each not in findings.problems]
    if config is None:
        findings.skipped.append("columns that the objective reads: mend the configuration first")
        return
    name = config.objective["name"]
    needs = needs_of(name, **config.objective_options)
    given = (
        config.data.weight and config.data.weight.by
    )  # the column that the rule makes, `gap_frequency` by its name
    in_rows = replace(needs, pairs=tuple(column for column in needs.pairs if column != given))
    for split, rows in findings.rows.items():
        if rows:
            findings.problems += column_problems(rows, name, in_rows)
            asked = (
                needs if split == "train" else replace(needs, soft=False)
            )  # what trains asks for soft labels
            findings.problems += preference_problems(rows, config.data.ties, name, asked)
            weights = Parts.read(config.objective.get("parts")).weights
            for note in label_notes([row.values for row in rows], config.model.streams, weights):
                say(f": {note}", first=f"data.{split}")
    train = findings.rows.get("train", [])
    held_out = findings.rows.get("held_out", [])
    findings.problems += amount_problems(train, held_out, inspected)
    findings.problems += share_problems(train, inspected)
    findings.problems += curation_problems(
        toy_rows(config) if config.data.train == "toy" else train, inspected
    )
    findings.problems += place_problems(inspected)
    findings.problems += split_problems(train, held_out)


def _as_far_as_readable(data: Mapping) -> DataConfig:
    """What a configuration with errors names for sure; `toy` stands where it names nothing to read."""
    known = {key: data[key] for key in ("train", "held_out", "media_root", "ties") if key in data}
    try:
        DataConfig.model_validate(known)
    except ValidationError as error:
        wrong = {each["loc"][0] for each in error.errors()}
        known = {key: value for key, value in known.items() if key not in wrong}
    named = DataConfig.model_validate({"train": "toy"} | known)
    if named.train == "toy" and named.splits_itself:
        return named.model_copy(update={"held_out": None})
    return named


def _check_clips(findings: Findings, inspected: Inspection, data: Mapping, *, mended: bool) -> None:
    """`mended`: those of data.train's rows too that are not trained on, as ties: a new manifest keeps them."""
    config, others = inspected.loaded, []
    rows = [row for split in findings.rows.values() for row in split]
    if mended:
        taken = {id(row.record) for row in rows}
        others = [row for row in findings.scanned.get("train", []) if id(row.record) not in taken]
        rows += others
    if not rows:
        return
    listens = _listens(config)
    with progress_bar("decode clips", total=len(clips_of(rows))) as bar:
        findings.clips = inspect_clips(rows, bar.advance, listens=listens)
        bar.finish()
    sizes, sampling = _sizes(data, config), _sampling(config)
    for split, members in findings.rows.items():
        problems = list(clip_problems(members, findings.clips, sizes, sampling))
        if listens:
            problems += sound_problems(members, findings.clips, sizes, sampling)
        findings.problems += _leave_out(findings, inspected, split, problems)
    findings.problems += clip_problems(others, findings.clips, sizes, sampling)
    if config is not None:
        rows = [row for split in (*findings.rows.values(), others) for row in split]
        findings.views = list(views_said(views_of(rows, findings.clips, sizes, sampling), rows[0].kind))
        if listens:
            heard = list(heard_in(rows, findings.clips, sizes, sampling))
            findings.views += sounds_said(heard, rows[0].kind)


def _listens(config: Config | None) -> bool:
    """Whether the model is trained on the clips' sound."""
    return config is not None and AUDIO in config.model.streams


def _leave_out(
    findings: Findings, inspected: Inspection, split: str, problems: list[Problem]
) -> list[Problem]:
    """What is wrong with a split's clips, masks and images; as warnings where `prepare` skips their pairs.

    Rows of such pairs are taken out of `findings.rows`. A clip that cannot be fetched stays an error: there `prepare`
    ends.
    """
    config = inspected.loaded
    wrong = {problem.where for problem in problems if problem.severity == "error"}
    if config is None or config.data.on_bad_data == "fail" or not wrong:
        return problems
    places = [(row.problem("").where, row) for row in findings.rows[split]]
    bad = {place for place, row in places if place in wrong and _here(findings, row)}
    before = findings.left_out.get(split, 0)
    count, pairs = before + len(bad), before + len(places)
    if not are_skipped(count, pairs, config.data.on_bad_data):
        what = f"data.{split}: {too_many(count, pairs)}"
        mend = "mend these rows or leave them out (`pgdpo check --fix`)"
        key = "data.on_bad_data"
        return [*problems, inspected.problem(key, what, value="skip", allowed="fewer", suggestion=mend)]
    if bad:
        findings.rows[split] = [row for place, row in places if place not in bad]
        findings.left_out[split] = count
    return [
        replace(problem, severity="warning", what=f"{problem.what}; the {findings.kind} will be left out")
        if problem.severity == "error" and problem.where in bad
        else problem
        for problem in problems
    ]


def _here(findings: Findings, row: CheckedRow) -> bool:
    return all(findings.clips[row.clips[side]].here for side in row.sides)


def _sampling(config: Config | None) -> Sampling:
    """How frames are taken; where the configuration has errors, one by one."""
    return Sampling() if config is None else Sampling.of(config.data, config.fps)


def _sizes(data: Mapping, config: Config | None) -> list[Size]:
    """What clips are cut to; where the configuration has errors, the frames alone if they are right."""
    if config is not None:
        return config.data.sizes
    frames = data.get("num_frames")
    known = (
        isinstance(frames, int) and not isinstance(frames, bool) and frames > 0 and not data.get("buckets")
    )
    return [(frames, 1, 1)] if known else []


def _check_model(findings: Findings, inspected: Inspection, full: bool) -> None:
    """What needs torch; not before all else is well, so that a broken manifest is said at once."""
    if findings.counts["error"]:
        findings.skipped.append("sizes, token lengths and prepared data: mend the errors first")
        return
    say("sizes, token lengths, prepared data")
    splits: dict[str, Sequence[CheckedRow]] = {"train": [], **findings.rows}
    if inspected.loaded.data.held_out:
        splits.setdefault("held_out", [])
    else:
        findings.skipped.append(f"evaluate: {NO_HELD_OUT}")
    from pgdpo.checking.model import model_problems

    problems = list(model_problems(inspected, splits, findings.clips, full=full))
    for split, rows in findings.rows.items():
        wrong = {problem.where for problem in problems if problem.key in PICTURES}
        own = wrong and wrong.intersection(row.problem("").where for row in rows)
        pictures = [problem for problem in problems if problem.key in PICTURES and problem.where in own]
        problems = [problem for problem in problems if problem not in pictures]
        findings.problems += _leave_out(findings, inspected, split, pictures)
    findings.problems += problems


def _show_pairs(findings: Findings, config: Config | None, page: Path) -> None:
    if config is None:
        findings.skipped.append("--show: mend the configuration first")
    elif not any(findings.rows.values()):
        findings.skipped.append("--show: no manifest has a row that can be shown")
    else:
        findings.page = page, write_pairs(findings, config, page)


def _one_manifest(named: DataConfig, *, known: bool) -> None:
    """Raises InputError where --fix has not one manifest to mend; `known`: the configuration has no errors."""
    count = len(sources_of(named, "train", Path("toy")))
    if count > 1:
        raise InputError(
            f"--fix mends one manifest, and data.train names {count}: give it each alone (data.train=FILE)"
        )
    if known and named.train == "toy":
        raise InputError("--fix mends a manifest, and data.train is `toy`: name a manifest (data.train=FILE)")


def _fix(findings: Findings, out: str, config: Config | None, data: Mapping, named: DataConfig) -> None:
    if "train" not in findings.rows:
        findings.skipped.append("--fix: data.train names no manifest")
        return
    rows, [source] = findings.scanned["train"], sources_of(named, "train", Path("toy"))
    with progress_bar("mend", total=len(rows)) as bar:
        findings.mended = mend(
            out,
            str(plain(source.manifest)),
            rows,
            findings.clips,
            findings.problems,
            _sizes(data, config),
            _sampling(config),
            bar.advance,
            listens=_listens(config),
        )
        bar.finish()
