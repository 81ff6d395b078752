"""Folders that take what a command writes, and the log of it there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pgdpo.messages.console import chatter_to
from pgdpo.messages.errors import InputError


def check_writable(folder: Path, key: str = "--out") -> None:
    """Raises InputError before hours are spent for a folder that takes no results, or cannot be made; nothing is left
    there. `key`: what names it."""
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        what = "" if above == folder else f"{above} is "
        raise InputError(f"{key} is {folder}: {what}a file: name a folder for the results")
    try:
        with tempfile.TemporaryDirectory(dir=above):
            pass
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}): name a folder for the results with {key}"
        ) from error


def log_in(folder: Path, out: Path | None = None):
    """While entered, what libraries say goes to `run.log` in the run's `folder`; in `out` where that is read-only."""
    key = "output_dir"
    if out is not None and folder.exists() and not os.access(folder, os.W_OK):
        folder, key = out, "--out"
    check_writable(folder, key)
    return chatter_to(folder / "run.log")
