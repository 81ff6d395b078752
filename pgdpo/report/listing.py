"""`pgdpo runs`: every run below a folder, with its state and its newest figures."""

from __future__ import annotations

import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pgdpo.checkpoints.best import best_step
from pgdpo.checkpoints.events import STANDING, read_events
from pgdpo.checkpoints.published import checkpoints_of, read_results, step_of
from pgdpo.checkpoints.record import read_record
from pgdpo.checkpoints.runs import runs_in
from pgdpo.config import PARTS, Config
from pgdpo.config.read import load_config
from pgdpo.files.atomic import read_json_lines
from pgdpo.messages.console import console, say
from pgdpo.messages.errors import InputError
from pgdpo.messages.formats import duration, percent
from pgdpo.report.alarms import tail_mean

WIDE = 140  # columns where no terminal says how many there are
DEPTH = 3  # folders below the one that is named
QUIET = 600.0  # seconds without a step after which a run that says no end is taken for lost


def show_runs(where: str) -> None:
    """Print the runs below `where`: a folder, or a configuration's output_dir. Raises InputError if there are none."""
    folder = Path(where).resolve() if Path(where).is_dir() else None
    if folder is None and Path(where).suffix in (".yaml", ".yml"):
        folder = load_config(where).output_dir
    found = find_runs(folder) if folder is not None and folder.is_dir() else []
    if not found:
        raise InputError(
            f"{folder or where}: no runs below it: name the folder that output_dir is in, or train one first"
        )
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=str(folder),
        caption="loss, accuracy, displacement: of the last steps' training data; win rate over the reference (at "
        "which step); kept: steps for --step, * the best by train.keep_best",
    )
    table.add_column("run", overflow="fold")
    for name in ("objective", "steps", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("loss", "acc.", "displ.", "win rate"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kept", overflow="fold")
    ends = {}
    for run in found:
        row, ends[run] = _row(run, _named(run, folder))
        table.add_row(*map(escape, row))
    page = console if console.is_terminal else Console(file=console.file, width=WIDE)
    page.print(table, soft_wrap=False)
    for run, why in ends.items():
        if why:
            say(f": {why}", first=_named(run, folder))


def find_runs(folder: Path) -> list[Path]:
    """Folders of runs at most DEPTH below `folder`, itself among them, by path."""
    found, level = {run for run in runs_in(folder.parent) if run == folder}, [folder]
    for _ in range(DEPTH):
        found |= {run for parent in level for run in runs_in(parent)}
        level = [
            path
            for parent in level
            for path in parent.iterdir()
            if path.is_dir() and path not in found and path.name[0] != "."
        ]
    return sorted(found)


def _named(run: Path, folder: Path) -> str:
    return run.name if run == folder else str(run.relative_to(folder))


def state_of(run: Path, done: int, steps: int) -> tuple[str, str]:
    """(training, stopped, finished, failed or lost; why, where it is one of the last two)."""
    last = next((row for row in reversed(read_events(run)) if row["event"] in STANDING), None)
    event = last["event"] if last else ""
    if event == "failed":
        return event, f"failed at step {last['step']}: {last['message'].splitlines()[0]}"
    if done >= steps or event == "finished":  # also before its last step, by train.steer.stop
        return "finished", ""
    if event == "stopped":
        return event, ""
    written = [
        path.stat().st_mtime for path in (run / "metrics.jsonl", run / "events.jsonl") if path.is_file()
    ]
    quiet = time.time() - max(written, default=0.0)
    if quiet < QUIET:
        return "training", ""
    return "lost", f"no step for {duration(quiet)} and no word of an end: go on with --resume"


def _row(run: Path, shown: str) -> tuple[list[str], str]:
    try:
        record = read_record(run)
        if record is None:
            raise InputError("it holds no record of a run")
    except InputError as error:  # damaged, or of another version: the others are still listed
        return [shown, "–", "–", "unreadable", *["–"] * 5], str(error)
    results = read_results(run / "results.json") or {}
    if record.expert == "both":
        return _row_of_both(run, shown, record, results)
    metrics = read_json_lines(run / "metrics.jsonl")
    done = metrics[-1]["step"] if metrics else 0
    state, why = state_of(run, done, record.train.steps)
    figures = [tail_mean(metrics, name) for name in ("loss", "implicit_accuracy", "displacement")]
    row = [
        shown,
        record.objective["name"],
        f"{done:,}/{record.train.steps:,}",
        state,
        "–" if figures[0] is None else f"{figures[0]:.3g}",
        *("–" if value is None else percent(value) for value in figures[1:]),
        _win_rate(results),
        _steps(
            sorted({step_of(path) for path in checkpoints_of(run)}), best_step(run, record.train.keep_best)
        ),
    ]
    return row, why


def _row_of_both(run: Path, shown: str, record: Config, results: dict) -> tuple[list[str], str]:
    """Of the two experts, the high-noise one first: what each of their rows says, with a stroke between."""
    found = [_row(folder, part) if (folder := run / part).is_dir() else None for part in PARTS]
    rows = [
        each[0] if each else [None, None, f"0/{record.train.steps:,}", "not begun", *["–"] * 5]
        for each in found
    ]
    whys = [f"{part}: {each[1]}" for part, each in zip(PARTS, found, strict=True) if each and each[1]]
    joined = [
        " | ".join(cells) if cells[0] != cells[1] else cells[0]
        for cells in zip(*(row[2:] for row in rows), strict=True)
    ]
    row = [shown, record.objective["name"], *joined]
    row[-2] = _win_rate(results)
    return row, "; ".join(whys)


def _win_rate(results: dict) -> str:
    win = results.get("win_rate")
    return f"{percent(win['value'])} ({results['steps']:,})" if win else "–"


def _steps(kept: list[int], best: int | None) -> str:
    """The first and the last of them; an ellipsis for more than six. The best has a star."""
    words = [f"{step}*" if step == best else str(step) for step in kept]
    return ", ".join(words if len(words) <= 6 else [*words[:2], "…", *words[-3:]]) or "none"
