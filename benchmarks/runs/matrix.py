"""Every way to train every kind of model: `python -m benchmarks.runs.matrix [--family NAME] [--kind NAME]`.

Runs the ways of `tests/engine/ways.py` on tiny pipelines, on one or two CPU ranks that are forked from prepared
processes, five steps each, and writes results/matrix.json anew after each: its losses, seconds, commit, and how far it
is from the plainest way that has the same losses. Called again, it goes on with what this commit has not run yet; what
was not asked for keeps its rows, whose commit says when they ran. Ends with 1 where a way failed or is too far off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("PGDPO_KERNELS_BACKEND", "eager")

from pgdpo.evaluation.evaluate import machine as machine_in_words
from pgdpo.files.atomic import write_json
from tests import counted
from tests.engine.ways import FACTORS, LIMITS, Runs, Way, design, figures, off
from tests.models.families import FAMILIES, KINDS
from tests.ranks import ROOT, Ranks, Zygote
from tests.worlds import save_tiny_wan, toy_world

from ..report import RESULTS, machine, output

FILE = RESULTS / "matrix.json"
COLUMNS = ("stage", "spread", "checkpointing", "kernels", "reference", "any")


def commit() -> str:
    """HEAD, and `+` where tracked files are not as it has them, results apart."""
    changed = output("git", "-C", str(ROOT), "status", "--short", "-uno", "--", ".", ":!benchmarks/results")
    return str(output("git", "-C", str(ROOT), "rev-parse", "HEAD")) + ("+" if changed else "")


class Table:
    """The result file: commits with their machine and versions, and a row for each way."""

    def __init__(self) -> None:
        held = json.loads(FILE.read_text()) if FILE.is_file() else {}
        known = {way: (way.kind, way.name) for way in design()}
        rows = held.get("kinds", {})
        self.commit, self.commits = commit(), held.get("commits", {})
        self.rows = {
            way: rows[kind][name] for way, (kind, name) in known.items() if name in rows.get(kind, {})
        }

    def has(self, way: Way) -> bool:
        return self.rows.get(way, {}).get("commit") == self.commit and "losses" in self.rows[way]

    def add(self, way: Way, row: dict) -> None:
        self.rows[way] = row | {"commit": self.commit}
        self.commits[self.commit] = machine() | {"machine": machine_in_words()}
        self.write()

    def write(self) -> None:
        kinds: dict[str, dict] = {}
        for way in design():
            if way in self.rows:
                kinds.setdefault(way.kind, {})[way.name] = self.rows[way]
        used = {row["commit"] for row in self.rows.values()}
        commits = {name: about for name, about in self.commits.items() if name in used}
        write_json(FILE, {"commits": commits, "limits": LIMITS, "families": self.figures(), "kinds": kinds})

    def losses(self, family: str) -> dict[Way, list[float]]:
        return {
            way: row["losses"]
            for way, row in self.rows.items()
            if KINDS[way.kind].family == family and "losses" in row
        }

    def figures(self) -> dict[str, dict]:
        found = {family: self.losses(family) for family in FAMILIES}
        return {family: {"runs": len(runs), **figures(runs)} for family, runs in found.items() if runs}

    def bad(self) -> list[str]:
        """What failed, and which figures are above their limits."""
        failed = [
            f"{way.kind}: {way.name}: {row['error']}" for way, row in self.rows.items() if "error" in row
        ]
        return failed + [
            f"{family}: {name} {found[name]:.1e} > {limit:g}"
            for family, found in self.figures().items()
            for name, limit in LIMITS.items()
            if found.get(name, 0.0) > limit
        ]


def run(todo: list[Way], table: Table, root: Path) -> None:
    """Trains each way that is to do and prints, behind it, when the last one will be done at the pace so far."""
    world = root / "world"
    world.mkdir()
    toy_world(world, save_tiny_wan(root / "tiny_wan"))
    ranks = Ranks({interpreted: Zygote(interpreted=interpreted) for interpreted in (False, True)}, root)
    folders, runs, began = {}, {}, time.monotonic()
    for number, way in enumerate(todo, 1):
        save, start = KINDS[way.kind].save, time.monotonic()
        if save not in folders:
            folders[save] = save(root / f"pipeline-{len(folders)}")
        if way.kind not in runs:
            runs[way.kind] = Runs(way.kind, folders[save], world, root / f"kind-{len(runs)}", ranks)
        row = trained(runs[way.kind], way, table)
        row["seconds"] = round(time.monotonic() - start, 1)
        table.add(way, row)
        left = (time.monotonic() - began) / number * (len(todo) - number)
        said = row.get("error") or f"{row['off']:.1e}"
        print(f"{number}/{len(todo)} {way.kind}: {way.name}: {said}; {left / 60:.0f} min left", flush=True)
    for zygote in ranks.zygotes.values():
        zygote.close()


def trained(runs: Runs, way: Way, table: Table) -> dict:
    try:
        losses = runs.losses(way)
    except AssertionError as error:
        return {"error": str(error).strip().splitlines()[-1][:300]}
    plain = losses if way.baseline == way else table.rows.get(way.baseline, {}).get("losses")
    return {"losses": losses, "off": off(plain, losses) if plain else None}


def page(table: Table) -> str:
    """The README's rows: a family's runs and its largest differences."""
    lines = []
    for family, found in table.figures().items():
        cells = [f"{found[name]:.1e}" if name in found else "" for name in COLUMNS]
        lines.append(f"| {family} | {found['runs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, action="append", help="one family; may be given again")
    parser.add_argument(
        "--kind", choices=KINDS, action="append", help="one kind of pipeline; may be given again"
    )
    for name in (name for name in FACTORS if name != "kind"):
        parser.add_argument(f"--{name}", help="ways with this value, and their baselines")
    parser.add_argument("--again", action="store_true", help="what this commit has run too")
    options = vars(parser.parse_args())
    asked = {name: options[name] for name in FACTORS if name != "kind" and options[name]}

    def selected(way: Way) -> bool:
        return (
            (not options["family"] or KINDS[way.kind].family in options["family"])
            and (not options["kind"] or way.kind in options["kind"])
            and all(str(getattr(way, name)) == value for name, value in asked.items())
        )

    wanted = {each for way in design() if selected(way) for each in (way.baseline, way)}
    table = Table()
    todo = [way for way in design() if way in wanted and (options["again"] or not table.has(way))]
    print(f"{len(wanted)} of {len(design())} ways, {len(todo)} to run, commit {table.commit}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[counted.FOLDER] = folder
        counted.keep()
        run(todo, table, Path(folder))
    print(page(table))
    if bad := table.bad():
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
