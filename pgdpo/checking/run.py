"""The check from end to end: configuration, rows, clips, model; a table, JSON, an exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgdpo.checking.clips import clip_problems, clips_of, inspect_clips, views_of
from pgdpo.checking.findings import Findings, show
from pgdpo.checking.mend import mend
from pgdpo.checking.rows import (
    amount_problems,
    column_problems,
    curation_problems,
    preference_problems,
    split_problems,
)
from pgdpo.checking.show import check_page, write_pairs
from pgdpo.config import Inspection, inspect_config
from pgdpo.console import chatter_to, progress_bar, say
from pgdpo.data.buckets import Size
from pgdpo.data.clips import Sampling, views_said
from pgdpo.data.files import write_json
from pgdpo.data.locations import plain
from pgdpo.data.manifest import CheckedRow, scan_manifest
from pgdpo.objectives import needs_of
from pgdpo.settings import Config

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
    as shot and as the model will see them. `full`: hold prepared data against the hashes of all clips, also of those
    whose name, size and time are as they were. No weight is loaded, and torch not before configuration and rows are
    without errors. Raises InputError for options that cannot be.
    """
    if page is not None:
        check_page(page)
    inspected = inspect_config(config_path, overrides)
    config = inspected.loaded
    findings = Findings(config_path, inspected.problems)
    data = _mapping(inspected.raw.get("data"))
    _check_rows(findings, inspected, data)
    _check_clips(findings, config, data)
    if config is not None:
        _check_model(findings, inspected, full)
    else:
        findings.skipped.append("sizes, token lengths and prepared data: mend the configuration first")
    if fix is not None:
        _fix(findings, fix, config, data)
    if page is not None:
        _show_pairs(findings, config, page)
    show(findings)
    if json_file is not None:
        write_json(json_file, findings.as_json())
        say(f"all of it as JSON -> {json_file}")
    return findings


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _check_rows(findings: Findings, inspected: Inspection, data: Mapping) -> None:
    """The manifests' rows, also where the rest of the configuration is wrong."""
    config, root = inspected.loaded, data.get("media_root")
    for split in SPLITS:
        source = data.get(split)
        if isinstance(source, str) and source != "toy":
            rows, problems = scan_manifest(source, Path(root) if isinstance(root, str) else None)
            findings.rows[split] = rows
            findings.problems += problems
    if config is None:
        findings.skipped.append("columns that the objective reads: mend the configuration first")
        return
    name = config.objective["name"]
    needs = needs_of(name, **config.objective_options)
    for rows in filter(None, findings.rows.values()):
        findings.problems += column_problems(rows, name, needs)
        findings.problems += preference_problems(rows, config.data.ties, name, needs)
    train = findings.rows.get("train", [])
    findings.problems += amount_problems(train, inspected)
    findings.problems += curation_problems(train, inspected)
    findings.problems += split_problems(train, findings.rows.get("held_out", []))


def _check_clips(findings: Findings, config: Config | None, data: Mapping) -> None:
    rows = [row for split in findings.rows.values() for row in split]
    if not rows:
        return
    with progress_bar("decode clips", total=len(clips_of(rows))) as bar:
        findings.clips = inspect_clips(rows, bar.advance)
        bar.finish()
    sizes, sampling = _sizes(data, config), _sampling(config)
    findings.problems += clip_problems(rows, findings.clips, sizes, sampling)
    if config is not None:
        findings.views = list(views_said(views_of(rows, findings.clips, sizes, sampling)))


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
    with chatter_to(Path(os.devnull)):  # libraries greet when they are imported
        from pgdpo.checking.model import model_problems

        findings.problems += model_problems(inspected, splits, full=full)


def _show_pairs(findings: Findings, config: Config | None, page: Path) -> None:
    if config is None:
        findings.skipped.append("--show: mend the configuration first")
    elif not any(findings.rows.values()):
        findings.skipped.append("--show: no manifest has a row that can be shown")
    else:
        findings.page = page, write_pairs(findings, config, page)


def _fix(findings: Findings, out: str, config: Config | None, data: Mapping) -> None:
    rows = findings.rows.get("train", [])
    if "train" not in findings.rows:
        findings.skipped.append("--fix: data.train names no manifest")
        return
    source = str(plain(data["train"]))
    with progress_bar("mend", total=len(rows)) as bar:
        findings.mended = mend(
            out,
            source,
            rows,
            findings.clips,
            findings.problems,
            _sizes(data, config),
            _sampling(config),
            bar.advance,
        )
        bar.finish()
