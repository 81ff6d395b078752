"""Ends all ranks, and names the one at fault, when a rank died, failed or stands still.

Every rank holds a TCP connection to the main rank. A process that is killed closes it at once, whatever its peers
wait in; a rank that is stopped or stuck stops counting, and the one that is furthest behind is named. What counts is
progress (`messages/progress.py`, a transformer's blocks), so that a long validation or save is no standstill. The
ranks also hear over it that one of them got a signal.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist
from rich.markup import escape

from pgdpo.checkpoints.events import log_event
from pgdpo.guards.signals import StopSignals
from pgdpo.messages.console import console, say
from pgdpo.messages.errors import InputError, Stopped
from pgdpo.messages.progress import heard_by
from pgdpo.ranks import agreement

BEAT = 0.5  # seconds between two reports
SILENT = 6 * BEAT  # without a report for so long, the whole process stands still
GRACE = 2.0  # seconds that a rank gets to report its own error before another rank's ends it


@dataclass
class Standing:
    """Where a rank is."""

    rank: int
    host: str = ""
    counter: int = 0  # of phases: ranks that are ahead wait for those behind
    units: int = 0  # of work within a phase, of which a rank may have more than another
    phase: str = "starting"
    moved: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    left: bool = False

    def update(self, counter: int, units: int, phase: str) -> None:
        self.heard = time.monotonic()
        if (counter, units) != (self.counter, self.units):
            self.counter, self.units, self.phase, self.moved = counter, units, phase, self.heard

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


class Watchdog:
    """`with Watchdog(run_dir, seconds, signals) as watchdog:` around a training; `watchdog.at("saving", 3)` moves it
    on, and so does what `pgdpo.messages.progress` is told, which is all that other work of several ranks needs.

    A rank that others may wait for, and that makes no progress for `seconds`, ends the run: every rank that can writes
    the stacks of its threads to `stacks-rank<N>.txt` in `run_dir` and exits with 1. An error that leaves the block is
    told to all ranks. `signals` hears what another rank's received.
    """

    def __init__(self, run_dir: Path, seconds: float, signals: StopSignals) -> None:
        self.run_dir, self.seconds = run_dir, seconds
        self.step: int | None = None  # outside of a training there is none
        self._signals = signals
        self._at = "starting"
        self._leave = contextlib.ExitStack()
        self._own = Standing(dist.get_rank(), socket.gethostname())
        self._closing = threading.Event()
        self._lines: list[_Line] = []  # to the main rank, or from it to all others
        self._thread: threading.Thread | None = None

    def at(self, phase: str, step: int) -> None:
        """The rank enters a phase ("computing") of a step; all ranks go through the same ones in the same order."""
        self.step, self._at = step, f"{phase} step {step}"
        self._own.update(self._own.counter + 1, 0, self._at)

    def stage(self, what: str) -> None:
        """As `at`, within a step."""
        self._at = what if self.step is None else f"step {self.step}, {what}"
        self._own.update(self._own.counter + 1, 0, self._at)

    def moved(self, what: str = "") -> None:
        """Some of a phase's work is done."""
        own = self._own
        own.update(own.counter, own.units + 1, f"{self._at}, {what}" if what else own.phase)

    def __enter__(self) -> Watchdog:
        self._leave.enter_context(heard_by(self))
        watch = self._connect() if dist.get_world_size() > 1 else self._watch_alone
        self._thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._leave.close()
        if error is not None and not isinstance(error, (Stopped, agreement.RankError)):
            if isinstance(error, RuntimeError) and not isinstance(error, InputError):
                self._closing.wait(
                    GRACE
                )  # another rank's death breaks our collective first, and is named here
            failed = f"{type(error).__name__}: {error}"
            self._tell({"failed": failed})
            if self._lines and not isinstance(error, InputError):
                console.print(f"[red]error[/]: rank {self._own.rank} failed: {escape(failed)}")
        self._tell({"left": True})
        self._closing.set()
        self._thread.join(timeout=GRACE)
        for line in self._lines:
            line.close()

    def _connect(self):
        """Open the lines; the address is what the launcher gave to all ranks, port and password the main rank's."""
        if dist.get_rank() == 0:
            listener = socket.create_server(("", 0), backlog=dist.get_world_size())
            token = secrets.token_hex(16)
            agreement.from_main((listener.getsockname()[1], token, self._own.host))
            return lambda: self._watch_all(listener, token)
        port, token, host = agreement.from_main(None)
        line = _Line(socket.create_connection((os.environ.get("MASTER_ADDR", "localhost"), port), timeout=60))
        line.send({"token": token, "rank": self._own.rank, "host": self._own.host})
        self._lines.append(line)
        return lambda: self._watch_main(line, Standing(0, host))

    def _watch_alone(self) -> None:
        while not self._closing.wait(BEAT):
            self._own.heard = time.monotonic()
            self._judge([self._own])

    def _watch_main(self, line: _Line, main: Standing) -> None:
        """A rank's thread: report, listen."""
        while not self._closing.wait(BEAT):
            line.send(self._report())
            self._own.heard = time.monotonic()
            for message in line.receive():
                main.heard = time.monotonic()
                main.left = main.left or "left" in message
                if "counter" in message:
                    main.update(message["counter"], message["units"], message["phase"])
                    self._signals.hear(message["received"])
                if "verdict" in message:
                    self._end(message["verdict"], stacks=message["stacks"], grace=message["grace"])
            if main.left:
                return
            if line.closed:
                self._end(f"{main} is gone: killed, or its machine failed")
            if main.heard < time.monotonic() - SILENT:
                main.moved = main.heard  # silent: as if it had stood still since
                self._judge([main])

    def _report(self) -> dict:
        own = self._own
        place = {"counter": own.counter, "units": own.units, "phase": own.phase}
        return place | {"received": self._signals.received}

    def _watch_all(self, listener: socket.socket, token: str) -> None:
        """The main rank's thread: accept, listen, judge."""
        ranks: dict[_Line, Standing] = {}
        with listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in selector.select(BEAT):
                    if key.fileobj is listener:
                        line = _Line(listener.accept()[0])
                        selector.register(line.socket, selectors.EVENT_READ, line)
                        continue
                    self._hear(key.data, ranks, token)
                    if key.data.closed:
                        selector.unregister(key.data.socket)
                        standing = ranks.pop(key.data, None)
                        if standing is not None and not standing.left:
                            self._verdict(f"{standing} is gone: killed, or its machine failed")
                self._own.heard = time.monotonic()
                for line in self._lines:
                    line.send(self._report())
                self._judge([self._own, *ranks.values()])

    def _hear(self, line: _Line, ranks: dict[_Line, Standing], token: str) -> None:
        for message in line.receive():
            if line not in ranks:
                if message.get("token") != token:
                    return  # not one of ours
                ranks[line] = Standing(int(message["rank"]), str(message["host"]))
                self._lines.append(line)
            elif "failed" in message:
                ranks[line].left = True
                self._verdict(f"{ranks[line]} failed: {message['failed']}", grace=GRACE)
            elif "left" in message:
                ranks[line].left = True
            elif "counter" in message:
                ranks[line].update(message["counter"], message["units"], message["phase"])
                self._signals.hear(message["received"])

    def _judge(self, ranks: list[Standing]) -> None:
        now = time.monotonic()
        there = [standing for standing in ranks if not standing.left]
        still = [standing for standing in there if standing.moved <= now - self.seconds]
        if not still:
            return
        silent = [standing for standing in still if standing.heard < now - SILENT]
        behind = min(standing.counter for standing in there)  # those that are ahead may wait for them
        guilty = silent or [standing for standing in still if standing.counter == behind]
        if not guilty:
            return
        named = ", ".join(f"{standing} ({standing.phase})" for standing in guilty)
        since = now - min(standing.moved for standing in guilty)
        limit = f"train.watchdog_seconds is {self.seconds:g}"
        self._verdict(f"{named} stands still since {since:.0f} s ({limit})", stacks=True)

    def _verdict(self, text: str, *, stacks: bool = False, grace: float = 0.0) -> None:
        """Tell all ranks why the run ends, and end this one."""
        self._tell({"verdict": text, "stacks": stacks, "grace": grace})
        self._end(text, stacks=stacks, grace=grace)

    def _tell(self, message: dict) -> None:
        if self._own.rank == 0 and "failed" in message:
            message = {"verdict": f"{self._own} failed: {message['failed']}", "stacks": False, "grace": GRACE}
        for line in self._lines:
            line.send(message)

    def _end(self, text: str, *, stacks: bool = False, grace: float = 0.0) -> None:
        """Leave without the main thread, which may wait for ever."""
        if self._closing.wait(grace):
            return  # it has its own error to report
        written = ""
        if stacks:
            path = self.run_dir / f"stacks-rank{self._own.rank}.txt"
            with contextlib.suppress(OSError), path.open("w") as file:
                faulthandler.dump_traceback(file=file, all_threads=True)
                written = f"; the stacks of rank {self._own.rank} are in {path}"
        where = f"rank {self._own.rank}, {self._own.phase}"
        console.print(f"[red]error[/]: {where}: {escape(text)}{escape(written)}")
        if self.step is None:
            say("what was finished is kept: start the same command again")
        else:
            say("the last checkpoint is intact: start the same command again with --resume")
            log_event(self.run_dir, self.step, "failed", text)
        os._exit(1)


class _Line:
    """JSON messages over a socket, one a line; sending never blocks for long and never fails."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self.closed = connection, False
        self._buffer = b""
        self._lock = threading.Lock()

    def send(self, message: dict) -> None:
        with self._lock, contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> Iterator[dict]:
        """What has come in by now; `closed` is set at the end of the stream."""
        try:
            while data := self.socket.recv(1 << 16):
                self._buffer += data
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def close(self) -> None:
        self.socket.close()
