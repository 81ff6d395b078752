"""That work goes on: long stages say so, and whoever watches the process hears it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_listeners: list[Callable[[str], None]] = []


def moved(what: str) -> None:
    """A long stage has come further: a prompt, a denoising step, a tile, a file. `what`: where it is, in words."""
    for hear in _listeners:
        hear(what)


@contextlib.contextmanager
def heard_by(hear: Callable[[str], None]) -> Iterator[None]:
    """While entered, `hear` is told what `moved` is."""
    _listeners.append(hear)
    try:
        yield
    finally:
        _listeners.remove(hear)
