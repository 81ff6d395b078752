"""Golden losses on disk, and their comparison with what runs give now.

`tests/assets/golden/losses/` holds a CSV a run, a line a step, each number as Python writes it, so that no bit is
lost; `stack.json` says on what they were computed and why they are as they are.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass

from tests.golden.inputs import ASSETS, pixels_sha256
from tests.golden.runs import RUNS, Found, Table

LOSSES, STACK = ASSETS / "losses", ASSETS / "stack.json"
RENEW = 'python -m tests.golden.renew --reason "what moved them, and why that is right"'
ELSEWHERE = 1e-5  # of each number, where stack or processor are others
# These follow from small differences of large errors, and rounding is of the errors' size: of the column's largest.
ELSEWHERE_ILL = 1e-4
ILL_CONDITIONED = ("margin", "gradient_share/rejected", "ars/alpha", "gradient_norm")


@dataclass(frozen=True)
class Recorded:
    """`pixels`: SHA-256 of the clips as they were decoded."""

    tables: dict[str, Table]
    stack: dict
    reason: str
    pixels: str


@dataclass(frozen=True)
class Difference:
    """The first step at which a column of a run left the record, and how many steps did. None: no such number."""

    run: str
    step: int
    column: str
    recorded: float | None
    now: float | None
    steps: int

    def __str__(self) -> str:
        more = f", and {self.steps - 1} step(s) after it" if self.steps > 1 else ""
        off = ""
        if self.recorded and self.now is not None:
            off = f", {abs(self.now - self.recorded) / abs(self.recorded):.1e} of it"
        return f"{self.run}, step {self.step}, {self.column}: recorded {self.recorded!r}, now {self.now!r}{off}{more}"


def differences(recorded: dict[str, Table], found: dict[str, Table], *, exact: bool) -> list[Difference]:
    """What left the record, the first step of every column; `exact`: to the bit, else as `ELSEWHERE` says.

    Columns that are not recorded are not looked at.
    """
    left = []
    for run, table in recorded.items():
        for column in table[0]:
            then, now = (_values(rows, column) for rows in (table, found.get(run, [])))
            allowed = {} if exact else _allowed(column, then)
            off = [
                step
                for step in sorted(then | now)
                if step not in then or step not in now or abs(now[step] - then[step]) > allowed.get(step, 0.0)
            ]
            if off:
                left.append(Difference(run, off[0], column, then.get(off[0]), now.get(off[0]), len(off)))
    return left


def _values(table: Table, column: str) -> dict[int, float]:
    return {row["step"]: row[column] for row in table if column in row}


def _allowed(column: str, values: dict[int, float]) -> dict[int, float]:
    """How far each step's number may be off where the stack is another; a recorded 0 stays 0 everywhere."""
    if column not in ILL_CONDITIONED:
        return {step: ELSEWHERE * abs(value) for step, value in values.items()}
    largest = max(map(abs, values.values()))
    return {step: ELSEWHERE_ILL * largest if value else 0.0 for step, value in values.items()}


def explain(found: list[Difference], recorded: Recorded, stack: dict, *, exact: bool) -> str:
    """All that a reader needs who sees the test fail."""
    held = "to the bit" if exact else f"losses to {ELSEWHERE:g} of each, since the stacks differ"
    others = {key for key in recorded.stack | stack if recorded.stack.get(key) != stack.get(key)}
    clips = "as recorded" if pixels_sha256() == recorded.pixels else "decoded to OTHER PIXELS than recorded"
    return "\n".join(
        [
            f"golden losses moved (held {held}); the first step of every column:",
            *(f"  {difference}" for difference in found),
            f"stack of record: {json.dumps(recorded.stack)}",
            f"stack of now:    {json.dumps(stack)}",
            f"they differ in: {', '.join(sorted(others)) or 'nothing'}; the clips are {clips}",
            f"last renewed because: {recorded.reason}",
            f"If the change is meant to move them: {RENEW}",
        ]
    )


def write(found: Found, reason: str) -> None:
    """Put `found` in the place of what is recorded."""
    LOSSES.mkdir(parents=True, exist_ok=True)
    for old in LOSSES.glob("*.csv"):
        old.unlink()
    for run in RUNS:
        table = found.tables[run]
        with (LOSSES / f"{run}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: repr(value) for key, value in row.items()} for row in table)
    record = {"reason": reason, "stack": found.stack, "pixels_sha256": pixels_sha256()}
    STACK.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read() -> Recorded:
    """What is recorded. Raises AssertionError that names the command where a file is missing."""
    missing = [path for path in (STACK, *(LOSSES / f"{run}.csv" for run in RUNS)) if not path.is_file()]
    if missing:
        raise AssertionError(f"no golden losses: {', '.join(map(str, missing))} is not there; {RENEW}")
    record = json.loads(STACK.read_text(encoding="utf-8"))
    tables = {run: _read_table(run) for run in RUNS}
    return Recorded(tables, record["stack"], record["reason"], record["pixels_sha256"])


def _read_table(run: str) -> Table:
    with (LOSSES / f"{run}.csv").open(encoding="utf-8", newline="") as file:
        return [
            {key: int(text) if key == "step" else float(text) for key, text in row.items()}
            for row in csv.DictReader(file)
        ]
