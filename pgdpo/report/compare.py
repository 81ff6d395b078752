"""Several runs on one page: the same axes, how they ended, and in which settings they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pgdpo.checkpoints.best import best_step, read_held_out
from pgdpo.checkpoints.published import read_results
from pgdpo.checkpoints.record import dumped, is_both, read_record
from pgdpo.config import PARTS, Config
from pgdpo.files.atomic import read_json_lines
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.messages.formats import objective_name
from pgdpo.report.curves.series import Drawn, drawn, line_series
from pgdpo.report.curves.svg import Series
from pgdpo.report.page import write_page
from pgdpo.training.panels import COLOURS, Line, Panel, panels_of, parts_of

TEMPLATE = "report/templates/comparison.html.jinja"
NAMED_ALONE = ("name", "output_dir")  # differ between any two runs
FIGURES = ("implicit_accuracy", "displacement", "margin")


@dataclass(frozen=True)
class Compared:
    """A run as it is compared. `name`: its folder's, with as much of the path as tells it from the others."""

    name: str
    colour: str
    folder: Path
    config: Config | None  # None where settings are not compared
    metrics: list[dict]
    held_out: list[dict]
    results: dict


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """`out/comparison.html` of the runs in `folders`. Raises InputError for a folder that holds no run."""
    runs = _open(folders)
    page = out / "comparison.html"
    write_page(
        page,
        TEMPLATE,
        runs=[_row(run) for run in runs],
        curves=beside(runs),
        differences=differences([run.config for run in runs]),
        commands=len(folders),
    )
    say(f"report  -> {page}")
    return page


def beside(runs: Sequence[Compared]) -> list[Drawn]:
    """Every line of every panel, of all runs on the same axes."""
    panels = panels_of(parts_of(row for run in runs for row in run.metrics))
    return list(filter(None, (_panel(panel, line, runs) for panel in panels for line in panel.lines)))


def _open(folders: Sequence[Path]) -> list[Compared]:
    folders = [
        run
        for folder in folders
        for run in ([folder / part for part in PARTS if is_both(folder)] or [folder])
    ]
    if len(folders) > COLOURS:
        raise InputError(f"{len(folders)} runs are named: at most {COLOURS} are told apart on one page")
    names = _names([folder.resolve() for folder in folders])
    return [
        _read(folder, name, f"run{place}")
        for place, (folder, name) in enumerate(zip(folders, names, strict=True), 1)
    ]


def _read(folder: Path, name: str, colour: str) -> Compared:
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        raise InputError(f"{folder}: no run: name the folders of runs, such as `pgdpo runs` lists")
    results = read_results(folder / "results.json") or {}
    return Compared(
        name,
        colour,
        folder,
        record,
        read_json_lines(folder / "metrics.jsonl"),
        read_held_out(folder),
        results,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell all of them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{folders[0]}: named twice: name each run once")


def _row(run: Compared) -> dict:
    """How a run stands: its results where it was evaluated, else its last look at held-out pairs."""
    train, looks = run.config.train, run.held_out
    return {
        "name": run.name,
        "colour": run.colour,
        "objective": objective_name(run.config.objective["name"]),
        "steps": run.metrics[-1]["step"] if run.metrics else 0,
        "of": train.steps,
        "best": best_step(run.folder, train.keep_best),
        "win_rate": run.results.get("win_rate"),
        "displaced": run.results.get("displacement") or (looks[-1]["displacement"] if looks else None),
        "reward": run.results.get("reward"),
        "looked": {name: looks[-1][name] for name in FIGURES} if looks else None,
    }


def _panel(panel: Panel, line: Line, runs: Sequence[Compared]) -> Drawn | None:
    """One line of a panel, in one colour a run; what was measured on held-out pairs is drawn in its place."""
    series = [found for run in runs if (found := _of_run(panel, line, run)) is not None]
    if not series:
        return None
    title = panel.title if len(panel.lines) == 1 else f"{panel.title}, {line.label}"
    on = " On held-out data." if any(each.kind == "measured" for each in series) else ""
    return drawn(replace(panel, title=title, caption=panel.caption + on), series)


def _of_run(panel: Panel, line: Line, run: Compared) -> Series | None:
    found = line_series(line, panel, run.metrics, run.held_out)
    if not found:
        return None
    # Held-out figures compare, training ones are of each run's own batches: they are drawn where there are no others.
    return replace(found[-1], label=run.name, colour=run.colour)


def differences(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """(key, each run's value) of the keys in which the configurations differ."""
    flat = [dumped(config) for config in configs]
    keys = sorted({key for each in flat for key in each})
    found = []
    for key in keys:
        values = [each.get(key) for each in flat]
        if key not in NAMED_ALONE and any(value != values[0] for value in values):
            found.append((key, [_shown(value) for value in values]))
    return found


def _shown(value: object) -> str:
    return (
        "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
