"""What a check found: as a table, as JSON, as an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pgdpo.checking.clips import Clip
from pgdpo.checking.mend import Mended
from pgdpo.messages.console import console, say
from pgdpo.messages.problems import ALIKE, Problem, kinds_of
from pgdpo.rows.manifest import CheckedRow
from pgdpo.rows.schema import counted

SHOWN = 60  # problems in the table; the JSON has all
TABLE_WIDTH = 100  # columns of a terminal that a table can be read in
COLOURS = {"error": "red", "warning": "yellow"}


@dataclass
class Findings:
    """Everything that was found, and what was looked at."""

    config: str
    problems: list[Problem] = field(default_factory=list)
    rows: dict[str, list[CheckedRow]] = field(default_factory=dict)  # split -> its rows, and
    scanned: dict[str, list[CheckedRow]] = field(
        default_factory=dict
    )  # all that are without errors, ties too
    left_out: dict[str, int] = field(default_factory=dict)  # split -> its pairs that `prepare` will skip
    clips: dict[str, Clip] = field(default_factory=dict)
    views: list[str] = field(default_factory=list)  # what is done to clips, by their kinds
    skipped: list[str] = field(default_factory=list)
    mended: Mended | None = None
    page: tuple[Path, int] | None = None  # where pairs are shown, and how many

    @property
    def kind(self) -> str:
        """What the rows are: `pair` or `group`."""
        return next((row.kind for rows in self.scanned.values() for row in rows), "pair")

    @property
    def counts(self) -> Counter:
        return Counter(problem.severity for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """2 if there are errors that --fix did not see to."""
        errors = [problem for problem in self.problems if problem.severity == "error"]
        settled = [problem for problem in errors if self.mended is not None and self.mended.settles(problem)]
        return 2 if len(errors) > len(settled) else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "errors": self.counts["error"],
            "warnings": self.counts["warning"],
            "pairs": {split: len(rows) for split, rows in self.rows.items()},
            "left_out": self.left_out,
            "clips": len(self.clips),
            "views": self.views,
            "skipped": self.skipped,
            "problems": [problem.as_json() for problem in self.problems],
            "fix": self.mended.as_json() if self.mended else None,
            "page": str(self.page[0]) if self.page else None,
        }


def show(findings: Findings) -> None:
    """Print it."""
    ordered = sorted(findings.problems, key=lambda problem: problem.severity)  # errors first
    shown = [
        (problem, max(len(group) - ALIKE, 0) if place == ALIKE - 1 else 0)
        for group in kinds_of(ordered)
        for place, problem in enumerate(group[:ALIKE])
    ]
    _table(findings.config, shown[:SHOWN])
    left = len(ordered) - sum(1 + more for _, more in shown[:SHOWN])
    if left:
        say(f"and {left} more: --json FILE has all")
    for line in findings.views:
        say(f"  {line}")
    for split, count in findings.left_out.items():
        say(f"{count} {findings.kind}s of {split} will be left out (data.on_bad_data)")
    for skipped in findings.skipped:
        say(f"not checked: {skipped}")
    if findings.mended is not None:
        _show_mended(findings.mended)
    if findings.page is not None:
        page, count = findings.page
        say(f"--show: {count} {findings.kind}s, as shot and as the model will see them -> {page.resolve()}")
    pairs = "".join(f"; {_sound(rows)} in {split}" for split, rows in findings.rows.items())
    clips = f"; {len(findings.clips)} clips decoded" if findings.clips else ""
    say(f"{findings.counts['error']} errors, {findings.counts['warning']} warnings{pairs}{clips}")


def _sound(rows: Sequence[CheckedRow]) -> str:
    """`20 sound rows`, or `120 sound groups of 2 to 6 samples`."""
    number, what = counted([row.values for row in rows]).split(" ", 1)
    return f"{number} sound {'rows' if what == 'pairs' else what}"


def _table(title: str, problems: Sequence[tuple[Problem, int]]) -> None:
    """Problems, each with the number of others that are like it; a line for each where a table would be too narrow."""
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("", "where", "what is wrong", "allowed", "what to do"):
        table.add_column(column, overflow="fold")
    for problem, more in problems:
        severity = Text(problem.severity, COLOURS[problem.severity])
        others = f" (and {more} more like it)" if more else ""
        where = problem.where.removeprefix(f"{Path.cwd()}/")
        cells = (where, problem.what + others, problem.allowed, problem.suggestion)
        table.add_row(severity, *map(Text, cells))
        if console.width < TABLE_WIDTH:
            console.print(severity + Text(f" {problem}{others}"))
    if problems and console.width >= TABLE_WIDTH:
        console.print(table, soft_wrap=False)


def _show_mended(mended: Mended) -> None:
    say(f"--fix: {mended.kept} rows -> {mended.manifest}")
    done: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("re-encoded", mended.reencoded),
        ("corrected", mended.corrected),
        ("left out", mended.dropped),
    )
    for what, rows in done:
        for name, how in list(rows.items())[:SHOWN]:
            console.print(Text(f"  {what}: {name}: {how}"))
        if len(rows) > SHOWN:
            say(f"  {what}: {len(rows) - SHOWN} more")
    if mended.outside:
        say(f"clips lie outside its folder: set data.media_root={mended.outside}")
    say(f"next: data.train={mended.manifest}")
