"""SIGTERM and SIGUSR1: all ranks stop at the same point, save, and exit with 143."""

from __future__ import annotations

import signal
import threading

from pgdpo.errors import Stopped
from pgdpo.training import agreement

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """While entered, the two signals are noted instead of ending the process; `check` ends all ranks together.

    Python runs signal handlers in the main thread only: elsewhere nothing is noted.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Call it on all ranks at the same points. Raises Stopped on all of them if one rank was signalled."""
        (received,) = agreement.highest(self._received)
        if received:
            raise Stopped(signal.Signals(received).name)

    def _note(self, number: int, frame: object) -> None:
        self._received = number
