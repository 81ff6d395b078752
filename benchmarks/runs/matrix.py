"""Losses of every way to train a model: `python -m benchmarks.runs.matrix [-k FAMILY]` -> results/matrix.json.

Runs the slow tests of the matrix model family x reference x weights x ZeRO stage on tiny models and two CPU ranks, and
the five steps of tests/engine/test_parallel.py, and writes down what they record: each cell's losses, and the largest
relative differences over the ZeRO stages, among ways to hold the reference, and of two ranks from one. With `-k`, as
pytest takes it, what was not run keeps its figures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pgdpo.evaluation.evaluate import machine, versions

from ..report import RESULTS

FILE = RESULTS / "matrix.json"
TESTS = ("tests/engine/test_matrix.py", "tests/engine/test_parallel.py")
SELECTED = "test_every_cell_of_the_matrix or test_two_ranks_are_one_however_they_share_the_work"


def run_tests(expression: str) -> tuple[dict[str, dict], int]:
    """(what the tests that pytest's `-k` expression selects recorded, by key; pytest's exit status)."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "matrix.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, "-m", "slow or not slow", "-k", expression]
        done = subprocess.run(
            [*command, "--timeout=7200"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "MATRIX_JSONL": str(log)},
        )
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    found: dict[str, dict] = {}
    for row in rows:
        for key, value in row.items():
            found.setdefault(key, {}).update(value)
    return found, done.returncode


def table(results: dict) -> str:
    """The README's rows: a family's cells and its largest differences."""
    lines = [
        f"| {name} | {len(family['losses'])} | {max(family['over_stages'].values()):.1e} "
        f"| {max(family['over_references'].values()):.1e} |"
        for name, family in results["families"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default=SELECTED, help="which tests, as pytest takes it; all by default")
    options = parser.parse_args()
    found, status = run_tests(options.k)
    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions()}
    results = json.loads(FILE.read_text()) if FILE.is_file() else {"families": {}, "five_steps": {}}
    for key, values in found.items():
        results[key] |= {name: {**value, **about} for name, value in values.items()}
    FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    sys.exit(status)


if __name__ == "__main__":
    main()
