"""`pgdpo import`: what it did, and what to do next. Needs no torch."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from pgdpo.messages.console import console, say
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import did_you_mean
from pgdpo.rows.importers import FORMATS, Options, Summary, import_data

SHOWN = 5  # names of a list


def run_import(format: str, source: str, out: str, options: Options, **more) -> Summary:
    """Import `source` and say what came of it; `more` as in `import_data`. Raises InputError."""
    if format not in FORMATS:
        known = "\n".join(f"  {form.name}: {form.summary} SOURCE: {form.layout}" for form in FORMATS.values())
        raise InputError(
            f"FORMAT is {format!r}{did_you_mean(format, FORMATS)}; allowed: {', '.join(FORMATS)}\n{known}"
        )
    typed = [key for key, value in options.columns.items() if value]
    if typed and format != "table":
        option = f"--{typed[0].replace('_', '-')}"
        raise InputError(
            f"{option} is for FORMAT table; {format} reads {FORMATS[format].layout}: leave it out"
        )
    summary = import_data(FORMATS[format], source, out, options, **more)
    table = Table(title=Text(out), title_justify="left", show_header=False)
    for label, value in (
        (_unit(summary), summary.rows),
        ("of them ties", summary.ties),
        ("of them judged by nobody (weight 0)", summary.weightless),
        ("records without a row", summary.dropped),
        ("media files written", summary.media),
        ("clips not found", len(summary.missing)),
    ):
        table.add_row(label, f"{value:,}")
    console.print(table)
    for note in summary.notes:
        say(note)
    if summary.by_name:
        say(
            f"clips not where their rows say, taken from beside the source by their names: {len(summary.by_name):,}"
        )
    for left in summary.left_over:
        say(f"left over: {left}")
    if summary.missing:
        named = ", ".join(summary.missing[:SHOWN]) + (", ..." if len(summary.missing) > SHOWN else "")
        say(f"not found, fetch them or leave their rows out (`pgdpo check --fix`): {named}")
    if summary.outside:
        say(
            f"clips lie outside the manifest's folder: set data.media_root={summary.outside} (or import with --copy)"
        )
    say(f"next: set data.train={out} in a configuration, then `pgdpo check CONFIG`")
    return summary


def _unit(summary: Summary) -> str:
    """What the rows are: pairs, or groups and how many samples they have."""
    if not summary.sizes:
        return "pairs"
    fewest, most = min(summary.sizes), max(summary.sizes)
    many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"groups of {many} sample{'s' if most > 1 else ''}"
