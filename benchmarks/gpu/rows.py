"""What a run leaves, as it comes: one JSON object a line, written by whichever process has it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

NAME = "rows.jsonl"
STAGES = ("machine", "smoke", "tests", "exactness", "wide", "pairs", "compile", "block", "steps", "end")
ALWAYS = ("machine", "end")  # what other rows are read against


class Rows:
    """Appends to DIR/rows.jsonl. A line is one write, so that processes share the file and a kill tears none but the
    last."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if torn and self.path.stat().st_size:
            os.write(self._file, b"\n")

    def add(self, stage: str, case: str, status: str, **data: object) -> dict:
        """Write one row.

        Args:
            status: `ok`, `failed`, `out of time` (begun and ended by its limit) or `left out` (never begun).
            data: what was measured, or `why` it was not.
        """
        row = {"stage": stage, "case": case, "status": status, "at": round(time.time(), 2), **data}
        os.write(self._file, (json.dumps(row) + "\n").encode())
        return row


def read(folder: Path) -> list[dict]:
    """The rows of a run, without a torn line.

    Raises:
        FileNotFoundError: there is no run in this folder.
    """
    if not (folder / NAME).is_file():
        raise FileNotFoundError(f"{folder / NAME}: not there: no run has written to {folder}")
    out = []
    for line in (folder / NAME).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill in the middle of a write
        if isinstance(row, dict) and "stage" in row:
            out.append(row)
    return out
