"""`events.jsonl`: every fault that a run met and every decision it took, one line each."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from pgdpo.files.atomic import read_json_lines
from pgdpo.messages.console import is_main_rank, say
from pgdpo.messages.errors import InputError, Stopped

# Where a run stands is the newest of these; a killed process leaves "started" or "resumed".
STANDING = ("started", "resumed", "stopped", "finished", "failed")
LONGEST = 2000  # characters of an error that are kept


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


@contextlib.contextmanager
def failure_logged(run_dir: Path, step: Callable[[], int]) -> Iterator[None]:
    """Log an error that leaves the block as the run's end, with what it tells in `details`; `step`: where that was."""
    try:
        yield
    except Stopped:
        raise  # not a failure, and logged with what was saved
    except Exception as error:
        named = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        details = getattr(error, "details", {})
        log_event(run_dir, step(), "failed", f"{named}{error}"[:LONGEST], **details)
        raise


def read_events(run_dir: Path) -> list[dict]:
    """Rows of a run's `events.jsonl`."""
    return read_json_lines(run_dir / "events.jsonl")
