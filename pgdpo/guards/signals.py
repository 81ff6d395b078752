"""Ctrl-C, SIGTERM and SIGUSR1: all ranks stop at the same point, save, and exit with 130 or 143.

What the launchers make of Ctrl-C, which a terminal sends to the whole foreground group (torch 2.13, deepspeed 0.19):

* torchrun: ranks have sessions of their own, and get SIGINT from its agent. After 30 s (--shutdown-timeout, or
  TORCH_ELASTIC_SHUTDOWN_TIMEOUT) it kills them. At a second Ctrl-C it sends them SIGTERM, as at no other time.
* deepspeed: ranks get the terminal's SIGINT, then a SIGTERM of the launcher, which kills after 30 s; no option changes
  that. `deepspeed` itself gives the terminal back at once, while the ranks still save.

Both end with an exit code of their own, 1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from pgdpo.engine.blocks import each_block
from pgdpo.messages.console import console, say
from pgdpo.messages.errors import INTERRUPTED, TERMINATED, Stopped
from pgdpo.messages.progress import heard_by
from pgdpo.ranks import agreement

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # the last one that any rank got is told
LOOK_SECONDS = 2.0  # so often the ranks ask each other inside of a micro-batch
APART = 0.5  # seconds: wrappers pass on what the terminal has sent already, and that is no second Ctrl-C


class StopSignals:
    """While entered, the signals are noted instead of ending the process; `check` ends all ranks together.

        with StopSignals() as signals:
            signals.check()                          # all ranks come here, once a micro-batch
            with each_block(signals.block): ...      # and here, block by block
            with signals.in_step(): ...              # a long stage of equally many steps on each
            with signals.apart(): ...                # each its own share of something: each leaves it for itself

    A second Ctrl-C ends the process at once, whatever it waits in: a thread sees it, since Python's own handlers wait
    for the main thread, which may stand in a collective or in a file system. `at_once` is called first, for at most a
    second. Python runs signal handlers in the main thread only: elsewhere nothing is noted. SIGINT stays ignored where
    it was, as by a shell's background jobs.
    """

    def __init__(self, at_once: Callable[[], object] = lambda: None) -> None:
        self.received = 0  # 1 + the place in STOPPING; other ranks' too, as the watchdog hears of them
        self._blocks = self._passed = 0  # since the last `check`, and since the ranks asked each other
        self._stride = self._most = 1  # blocks after which they do, and the most that these may become
        self._checked = self._looked = time.monotonic()
        self._at_once = at_once
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        heard, ours = socket.socketpair()
        ours.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True)
        thread.start()
        # Undone in the other order. A 0 ends the thread: a forked process may hold our end open, closing it would not.
        self._undo.callback(ours.close)
        self._undo.callback(thread.join)
        self._undo.callback(ours.send, b"\0")
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in STOPPING:
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._undo.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def check(self) -> None:
        """Call it on all ranks at the same points. Raises Stopped on all of them if one rank was signalled."""
        milliseconds = self._look(self._checked)
        # A host runs ahead of its GPU, so that single blocks tell less of their pace than all since the last call.
        self._most = max(1, int(self._blocks * LOOK_SECONDS * 1000) // max(1, milliseconds))
        self._blocks, self._passed, self._stride = 0, 0, 1
        self._checked = time.monotonic()

    def block(self) -> None:
        """As `check`, which it follows; all ranks call it equally often, and ask each other every few seconds.

        How often is found anew after each `check`: blocks of larger clips may take many times as long as the last ones.
        """
        self._blocks += 1
        self._passed += 1
        if self._passed < self._stride:
            return
        milliseconds = self._look(self._looked)
        if milliseconds < 500 * LOOK_SECONDS:
            self._stride = min(2 * self._stride, self._most)
        elif milliseconds > 1000 * LOOK_SECONDS:
            self._stride = max(1, self._stride // 2)
        self._passed = 0

    def _look(self, since: float) -> int:
        """Ask all ranks. Returns the slowest one's milliseconds since a time of its own, a number that all know."""
        received, milliseconds = agreement.highest(self.received, int(1000 * (time.monotonic() - since)))
        self._looked = time.monotonic()
        _raise_stopped(received)
        return milliseconds

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Around a long stage that all ranks go through together, block by block, saying `progress.moved` alike."""
        with heard_by(_InMainThread(self.check)), each_block(self.block):
            yield

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around a long stage in which each rank does a share of its own, and says `progress.moved`.

        A rank leaves the stage as soon as it knows of a signal, its own or by the watchdog another's; then all `check`.
        """
        with contextlib.suppress(_Left), heard_by(_InMainThread(self._leave_share)):
            yield
        self.check()

    def _leave_share(self) -> None:
        if self.received:
            raise _Left

    def hear(self, received: int) -> None:
        """What another rank received."""
        self.received = max(self.received, received)

    def _note(self, number: int, frame: object) -> None:
        self.hear(1 + STOPPING.index(number))

    def _listen(self, heard: socket.socket) -> None:
        """The thread: every signal's number arrives here as a byte, at once."""
        again = {signal.SIGINT}
        if "TORCHELASTIC_RUN_ID" in os.environ:
            again.add(signal.SIGTERM)
        first = None
        with heard:
            while (numbers := heard.recv(64)) and 0 not in numbers:
                if first is None and signal.SIGINT in numbers:
                    first = time.monotonic()
                    with contextlib.suppress(OSError):  # nobody reads it any more
                        say("stopping to save; Ctrl-C again ends at once", first="Ctrl-C: ")
                elif first is not None and again & set(numbers) and time.monotonic() > first + APART:
                    self._end()

    def _end(self) -> None:
        last_words = threading.Thread(target=self._say_last, daemon=True)
        last_words.start()
        last_words.join(1.0)  # a file system or a terminal may be what the process waits for
        os._exit(INTERRUPTED)

    def _say_last(self) -> None:
        console.show_cursor(True)  # a progress bar hides it
        self._at_once()


class _Left(Exception):
    """A rank's way out of its share."""


class _InMainThread:
    """Calls `act` as the main thread comes further; what other threads have begun, such as a save, they finish."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def moved(self, what: str) -> None:
        if threading.current_thread() is threading.main_thread():
            self._act()

    stage = moved


def _raise_stopped(received: int) -> None:
    if received:
        number = STOPPING[received - 1]
        by_hand = number == signal.SIGINT
        raise Stopped("Ctrl-C" if by_hand else number.name, INTERRUPTED if by_hand else TERMINATED)
