"""The command line: one short function per command, in the file of what it is about."""

from __future__ import annotations

import os
import sys

from pgdpo.cli import data, run, tools  # noqa: F401  (they register their commands)
from pgdpo.cli.app import app
from pgdpo.errors import InputError, Stopped

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: bad input is one message and exit code 2; a run that was told to stop ends with 143."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        _leave(f"error: {error}", 2)
    except Stopped as stop:
        _leave(f"stopped: {stop}", 143)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    # Other ranks may wait in a collective for this one: leave without joining them.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    sys.exit(code)
