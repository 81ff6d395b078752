"""`events.jsonl`: every fault that a run met and every decision it took, one line each."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from pgdpo.console import is_main_rank, say


def log_event(run_dir: Path, step: int, event: str, message: str, **details: object) -> None:
    """Append what happened after which step; the main rank writes. A full disk is said and stops nothing."""
    if not is_main_rank():
        return
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    row = {"time": now, "step": step, "event": event, "message": message, **details}
    try:
        with (run_dir / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        say("", first=f"{run_dir / 'events.jsonl'} cannot be written ({error}): {event}: {message}")


def read_events(run_dir: Path) -> list[dict]:
    """Rows of a run's `events.jsonl`; a last line that was cut off by a kill is left out."""
    path = run_dir / "events.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
