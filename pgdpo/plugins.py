"""What is added to the house by a file alone, and found by its name.

The rooms below the file's own reach it here, as a user's configuration does: by a name that they are given, when it is
asked for. None of them may name one.
"""

from __future__ import annotations

import functools
from importlib import import_module
from pathlib import Path
from typing import Any

FAMILIES = "models.families"  # each with its class as `FAMILY`


@functools.cache
def found(package: str) -> tuple[str, ...]:
    """Names of the files of a package of this one; what systems and editors leave beside them (`._wan.py`) is none."""
    folder = Path(__file__).resolve().parent.joinpath(*package.split("."))
    names = sorted(file.stem for file in folder.glob("[!_]*.py"))
    return tuple(name for name in names if name.isidentifier())


def load(package: str, name: str, attribute: str) -> Any:
    """What one of these files calls `attribute`."""
    return getattr(import_module(f".{package}.{name}", __package__), attribute)
