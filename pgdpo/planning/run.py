"""`pgdpo plan`: what a run needs, printed; what would make it fit."""

from __future__ import annotations

import json

from rich.markup import escape

from pgdpo.config import Config
from pgdpo.messages.console import console, put
from pgdpo.messages.errors import InputError
from pgdpo.planning.advice import changes_that_fit, explain
from pgdpo.planning.costs.disk import explain_disk
from pgdpo.planning.hardware import machine
from pgdpo.planning.plan import Planner
from pgdpo.planning.table import assumptions, table


def show_plan(config: Config, *, as_json: bool, **where) -> None:
    """Print what a run needs; `where` as `hardware.machine` takes it.

    Raises InputError if it does not fit the GPUs, or what it writes the disks.
    """
    on = machine(**where)
    planner = Planner(config)
    plan = planner.plan(config, on)
    changes = [] if plan.fits else changes_that_fit(planner, config, on)
    if as_json:
        better = [{"settings": change.settings, "plan": change.plan.as_json()} for change in changes]
        put(json.dumps({**plan.as_json(), "changes": better}) + "\n")
    else:
        console.print(table(plan, escape(f"{config.model.path}, {config.objective['name']}")))
        console.print(escape(assumptions(plan)), style="dim")
    short = [] if plan.fits else [explain(plan, changes)]
    short += [] if plan.disk.fits else [explain_disk(plan.disk, config)]
    if short:
        raise InputError("\n".join(short))
