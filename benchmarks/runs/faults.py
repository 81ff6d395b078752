"""Every fault at its full count: `python -m benchmarks.runs.faults [-k EXPRESSION]` -> results/faults.json.

Runs `tests/faults` with its slow tests and writes down, for each fault, how often it was tried, survived, and the
seconds that took; and what a save of 1 GB and the guards of a step cost (`--cost`: that alone). With `-k`, as pytest
takes it, the faults that were not run keep their figures.
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
from . import fault_costs

FILE = RESULTS / "faults.json"


def run_tests(expression: str) -> dict[str, dict]:
    """Fault -> its figures, from what `tally` wrote in all tests that pytest's `-k` expression selects."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "faults.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/faults",
            "-m",
            "slow or not slow",
            "-k",
            expression,
        ]
        environment = {**os.environ, "FAULTS_JSONL": str(log)}
        root = Path(__file__).parents[2]
        done = subprocess.run([*command, "--timeout=7200"], cwd=root, env=environment)
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    found: dict[str, dict] = {}
    for row in rows:
        total = found.setdefault(
            str(row.pop("fault")), {"tried": 0, "survived": 0, "seconds": 0.0, "tests": []}
        )
        for key in ("tried", "survived", "seconds"):
            total[key] = round(total[key] + row[key], 1)
        total["tests"].append(row)
    if done.returncode:
        print(f"pytest ended with {done.returncode}: see above", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", help="which tests, as pytest takes it; all by default")
    parser.add_argument("--cost", action="store_true", help="measure the costs only")
    options = parser.parse_args()
    results = json.loads(FILE.read_text()) if FILE.is_file() else {"faults": {}}
    load = os.getloadavg()[0]
    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions()}
    if options.cost or not options.k:
        for name, measure in (("saving_cost", fault_costs.saving), ("guards_cost", fault_costs.guarding)):
            results[name] = {**measure(), "load_average": round(os.getloadavg()[0], 1), **about}
    if not options.cost:
        found = run_tests(options.k)
        results["faults"] |= {
            key: {**value, "load_average": round(load, 1), **about} for key, value in found.items()
        }
    results["faults"] = dict(sorted(results["faults"].items(), key=lambda item: int(item[0])))
    FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for key, value in results["faults"].items():
        print(f"fault {key:>2}: {value['survived']} of {value['tried']} survived, {value['seconds']} s")


if __name__ == "__main__":
    main()
