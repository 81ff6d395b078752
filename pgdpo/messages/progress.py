"""That work goes on: long stages say so, and whoever watches the process hears it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Listener(Protocol):
    """What is told of a process's work, in whichever of its threads that is done."""

    def moved(self, what: str) -> None: ...

    def stage(self, what: str) -> None: ...


_listeners: list[Listener] = []


def moved(what: str) -> None:
    """A long stage has come further: a prompt, a denoising step, a tile, a file. `what`: where it is, in words.

    Ranks may say it in any number: their shares of the work differ.
    """
    for listener in list(_listeners):
        listener.moved(what)


def stage(what: str) -> None:
    """This rank has done its share and comes to the next stage, where it may wait for the others.

    All ranks come to the same stages in the same order.
    """
    for listener in list(_listeners):
        listener.stage(what)


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """While entered, `listener` is told what is said."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
