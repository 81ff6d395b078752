"""The command line: one short function per command, in the file of its panel of `pgdpo --help`."""

from __future__ import annotations

import os
import sys

from pgdpo.cli import data, look, quickstart, tools, train  # noqa: F401  (they register their commands)
from pgdpo.cli.app import app
from pgdpo.messages.errors import INTERRUPTED, InputError, Interrupted, Stopped
from pgdpo.version import foreign_kernels

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: bad input is one message and exit code 2; what was told to stop ends with 130 (Ctrl-C) or 143."""
    if warning := _once(foreign_kernels()):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    try:
        app(standalone_mode=True)
    except InputError as error:
        _leave(f"error: {error}", 2)
    except Stopped as stop:
        _leave(_once(f"stopped: {stop}"), stop.code)
    except Interrupted:
        _leave(_once("stopped: Ctrl-C"), INTERRUPTED)


def _once(message: str) -> str:
    """What all ranks would say is the main rank's to say."""
    return message if os.environ.get("RANK", "0") == "0" else ""


def _leave(message: str, code: int) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)
    # Other ranks may wait in a collective for this one: leave without joining them.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    sys.exit(code)
