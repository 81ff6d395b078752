"""Signals and watchdog together: what stands around the work of all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pgdpo.checkpoints.events import log_event
from pgdpo.engine.blocks import each_block
from pgdpo.guards.signals import StopSignals
from pgdpo.guards.watchdog import Watchdog


class Watch:
    """While entered, signals stop all ranks together and a rank that stands still for `seconds` ends them.

    with Watch(run_dir, seconds) as watch:
        watch.at("computing", 3)                  # all ranks come to the same phases in the same order
        with watch.blocks(): ...                  # forward and backward, which a signal breaks off
        with watch.signals.apart(): ...           # as `StopSignals` has it
    """

    signals: StopSignals

    def __init__(self, run_dir: Path, seconds: float) -> None:
        self._run_dir, self._seconds = run_dir, seconds
        self._watchdog: Watchdog | None = None

    def __enter__(self) -> Watch:
        with contextlib.ExitStack() as stack:
            self.signals = stack.enter_context(StopSignals(self._log_end_at_once))
            self._watchdog = stack.enter_context(Watchdog(self._run_dir, self._seconds, self.signals))
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.__exit__(*error)

    @property
    def step(self) -> int | None:
        """The step of the newest phase; None outside of a training."""
        return None if self._watchdog is None else self._watchdog.step

    def at(self, phase: str, step: int) -> None:
        """As `Watchdog.at`."""
        self._watchdog.at(phase, step)

    @contextlib.contextmanager
    def blocks(self) -> Iterator[None]:
        """Around a forward or backward pass of all ranks: each block is progress, and a place to stop."""
        with each_block(self._watchdog.moved), each_block(self.signals.block):
            yield

    def _log_end_at_once(self) -> None:
        if self.step is not None:
            text = "Ctrl-C twice: ended at once; what came after the newest checkpoint is lost"
            log_event(self._run_dir, self.step, "stopped", text)
