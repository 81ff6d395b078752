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
from collections.abc import Callable

from pgdpo.console import console, say
from pgdpo.errors import INTERRUPTED, TERMINATED, Stopped
from pgdpo.training import agreement

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # the last one that any rank got is told
APART = 0.5  # seconds: wrappers pass on what the terminal has sent already, and that is no second Ctrl-C


class StopSignals:
    """While entered, the signals are noted instead of ending the process; `check` ends all ranks together.

    A second Ctrl-C ends the process at once, whatever it waits in: a thread sees it, since Python's own handlers wait
    for the main thread, which may stand in a collective or in a file system. `at_once` is called first, for at most a
    second. Python runs signal handlers in the main thread only: elsewhere nothing is noted. SIGINT stays ignored where
    it was, as by a shell's background jobs.
    """

    def __init__(self, at_once: Callable[[], object] = lambda: None) -> None:
        self._received = 0  # 1 + the place in STOPPING
        self._at_once = at_once
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        heard, ours = socket.socketpair()
        ours.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True)
        thread.start()
        # Undone in the other order. A 0 ends the thread: a forked process may hold our end open, closing it would not.
        self._leave.callback(ours.close)
        self._leave.callback(thread.join)
        self._leave.callback(ours.send, b"\0")
        self._leave.callback(signal.set_wakeup_fd, before)
        for number in STOPPING:
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._leave.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.close()

    def check(self) -> None:
        """Call it on all ranks at the same points. Raises Stopped on all of them if one rank was signalled."""
        (received,) = agreement.highest(self._received)
        if received:
            number = STOPPING[received - 1]
            by_hand = number == signal.SIGINT
            raise Stopped("Ctrl-C" if by_hand else number.name, INTERRUPTED if by_hand else TERMINATED)

    def _note(self, number: int, frame: object) -> None:
        self._received = max(self._received, 1 + STOPPING.index(number))

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
                        say("stopping after this step to save; Ctrl-C again ends at once", first="Ctrl-C: ")
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
