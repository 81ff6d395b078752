"""The catalogue on the terminal: a table of all objectives, or one of them in full."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from pgdpo.objectives.docs import NOTATION, rows
from pgdpo.objectives.groups import GROUPS
from pgdpo.objectives.modifiers import MODIFIERS
from pgdpo.objectives.objective import get_spec
from pgdpo.objectives.spec import CONFIDENCE


def table() -> Table:
    """The objectives by group: what each is, its paper, its options, what it needs, how sure its formula is."""
    listing = Table(
        caption=f"`pgdpo objectives NAME` shows one with its formula. Modifiers of any: {', '.join(MODIFIERS)}.",
        caption_justify="left",
        pad_edge=False,
        show_lines=True,
    )
    listing.add_column("name", no_wrap=True, style="bold")
    listing.add_column("what it does, paper", ratio=5, overflow="fold")
    listing.add_column("options, data needed", ratio=4, overflow="fold")
    listing.add_column("formula from", no_wrap=True)
    group = ""
    for row in rows():
        spec = get_spec(row["name"].strip("`"))
        if row["group"] != group:
            group = row["group"]
            listing.add_row("", f"[bold]{escape(group)}[/]: {escape(GROUPS[group])}", "", "")
        options = ", ".join(f"{key}={_plain(option.default)}" for key, option in spec.options.items())
        about = f"{escape(spec.summary)}\n[dim]{escape(spec.paper)}[/]"
        needs = f"{escape(options or 'no options')}\n[dim]{escape(row['needs'])}[/]"
        listing.add_row(spec.name, about, needs, spec.confidence)
    return listing


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
        ("stands as", f"{row['group']}: {GROUPS[row['group']]}"),
        ("what it does", spec.summary),
        ("loss", spec.formula),
        ("formula from", f"{spec.confidence}: {CONFIDENCE[spec.confidence]}"),
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
