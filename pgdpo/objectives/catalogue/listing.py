"""The catalogue on the terminal: a line an objective, or one of them in full."""

from __future__ import annotations

import textwrap

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pgdpo.objectives.catalogue.docs import NOTATION, PAIRS_ALONE, WHOLE, rows, units
from pgdpo.objectives.catalogue.standing import STANDINGS, by_standing
from pgdpo.objectives.modifiers import MODIFIERS
from pgdpo.objectives.objective import get_spec
from pgdpo.objectives.spec import CONFIDENCE

WIDTH = 80  # columns that every terminal has


def overview() -> Text:
    """The objectives by standing, a line of at most 80 columns each: name, what it does, paper; then which of them read
    whole groups, and which pairs alone."""
    specs = [spec for members in by_standing().values() for spec in members]
    first, second = (max(map(len, cells)) + 2 for cells in ([s.name for s in specs], [s.gist for s in specs]))
    shown = Text()
    for standing, members in by_standing().items():
        shown.append(_wrapped(f"{standing}: {STANDINGS[standing]}", "dim"))
        for spec in members:
            shown.append(f"{spec.name:{first}}", "bold").append(f"{spec.gist:{second}}{spec.cited}\n")
        shown.append("\n")
    whole, alone = (
        ", ".join(spec.name for spec in specs if units(spec) == of) for of in (WHOLE, PAIRS_ALONE)
    )
    of_groups = f"Of groups of any size: {whole}. Of pairs alone: {alone}. Any other compares pairs, of a larger group "
    shown.append(_wrapped(of_groups + "those that `pairing` names.", "dim", end="\n\n"))
    end = f"`pgdpo objectives NAME` shows one with its formula. Modifiers of any: {', '.join(MODIFIERS)}."
    return shown.append(_wrapped(end, "dim", end=""))


def _wrapped(text: str, style: str, end: str = "\n") -> Text:
    return Text(textwrap.fill(text, WIDTH) + end, style)


def page(name: str) -> RenderableType:
    """One objective in full. Raises InputError for an unknown name."""
    spec = get_spec(name)
    row = next(row for row in rows() if row["name"] == f"`{name}`")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text in (
        ("objective", name),
        ("paper", spec.paper),
        ("stands as", f"{row['standing']}: {STANDINGS[row['standing']]}"),
        ("what it does", spec.summary),
        ("loss", spec.formula),
        ("formula from", f"{spec.confidence}: {CONFIDENCE[spec.confidence]}"),
        ("reads", row["reads"]),
        ("needs", row["needs"]),
        ("note", row["note"]),
    ):
        if text:
            facts.add_row(label, escape(text))
    options = Table(title="options", title_justify="left", pad_edge=False)
    for column in ("option", "default", "allowed", "meaning"):
        options.add_column(column, overflow="fold")
    for key, option in spec.options.items():
        options.add_row(key, _plain(option.default), escape(option.allowed), escape(option.about))
    parts = [facts, "", options] if spec.options else [facts]
    return Group(*parts, "", f"[dim]{escape(' '.join(NOTATION.split()))}[/]")


def _plain(default: float | str) -> str:
    return default if isinstance(default, str) else f"{default:g}"
