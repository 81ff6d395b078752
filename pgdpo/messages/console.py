"""Two streams: our own lines on the terminal, what libraries say in the log of the run or nowhere."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from pgdpo.messages.errors import InputError

console = Console(highlight=False, soft_wrap=True)


def is_main_rank() -> bool:
    """True on the rank that speaks to the terminal and writes the shared files."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str, *, first: str = "", style: str = "yellow") -> None:
    """Print one of our own lines, once per run; `first`: words before it, in a style of rich's (yellow: a warning).

    What stands in brackets is text: paths and ids hold them.
    """
    if is_main_rank():
        console.print(Text.assemble((first, style), message))


@functools.cache
def say_once(message: str) -> None:
    """`say`, for what several places come upon in one process."""
    say(message)


def put(text: str) -> None:
    """Write text as it stands to standard output: what was asked for as Markdown or JSON, for a file or a program."""
    out = _kept[0].out if _kept else sys.stdout
    out.write(text)
    out.flush()


@dataclass
class _Kept:
    """What a command keeps while descriptors 1 and 2 belong to the libraries."""

    out: TextIO  # standard output
    errors: TextIO
    chatter: IO[bytes]  # what libraries said before there was a log


_kept: list[_Kept] = []  # one, while a command runs


@contextlib.contextmanager
def ours_alone() -> Iterator[None]:
    """Keep the terminal for our own lines and bars while a command runs, from its first import on.

    What libraries print goes to the log that `chatter_to` names, else nowhere. Errors that leave the command find
    standard error as it was.
    """
    if _kept:
        yield
        return
    previous = (
        None if console.file is sys.stdout else console.file
    )  # None: sys.stdout, whatever it is by then
    with (
        tempfile.TemporaryFile(buffering=0) as chatter,
        _as_it_leads_now(sys.stdout, 1) as out,
        _as_it_leads_now(sys.stderr, 2) as errors,
        _descriptors_to(chatter),
    ):
        console.file = out
        _kept.append(_Kept(out, errors, chatter))
        try:
            yield
        finally:
            _kept.clear()
            console.file = previous


@contextlib.contextmanager
def said_to_stderr() -> Iterator[None]:
    """While entered, our own lines go to standard error: standard output is a program's to read."""
    with ours_alone():
        previous, console.file = console.file, _kept[0].errors
        try:
            yield
        finally:
            console.file = previous


@contextlib.contextmanager
def chatter_to(log_file: Path) -> Iterator[None]:
    """Send what libraries print to `log_file`, after what they said before there was a log.

    An InputError before anything else was written takes the log and its folders back.
    """
    if not is_main_rank():
        log_file = log_file.with_stem(f"{log_file.stem}-rank{os.environ['RANK']}")
    made = [folder for folder in log_file.parents if not folder.exists()]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with ours_alone(), log_file.open("ab", buffering=0) as log, _descriptors_to(log):
        chatter = _kept[0].chatter
        chatter.seek(0)
        log.write(chatter.read())
        chatter.seek(0)
        chatter.truncate()
        try:
            yield
        except InputError:
            _clean_up(log_file.parent, made)
            raise


@contextlib.contextmanager
def _as_it_leads_now(stream: TextIO, descriptor: int) -> Iterator[TextIO]:
    """A stream to where `stream` leads now, also when its descriptor leads elsewhere; a notebook's or a test's, which
    has no such descriptor, is itself."""
    try:
        moves = stream.fileno() == descriptor
    except (OSError, ValueError):  # a stream of text in memory
        moves = False
    if not moves:
        yield stream
        return
    kept = open(os.dup(descriptor), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)  # noqa: SIM115
    try:
        yield kept
    finally:
        with contextlib.suppress(BrokenPipeError):  # `pgdpo options | head`
            kept.close()


@contextlib.contextmanager
def _descriptors_to(file: IO[bytes]) -> Iterator[None]:
    """While entered, descriptors 1 and 2 lead to `file`: DeepSpeed, xformers and gloo print from C++ and from loggers
    made at import."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    for descriptor, _ in saved:
        os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in saved:
            os.dup2(before, descriptor)
            os.close(before)


def _clean_up(folder: Path, made: list[Path]) -> None:
    """Take back the folders `made` for a log, where they hold nothing but ranks' logs."""
    if folder not in made or any(file.suffix != ".log" for file in folder.iterdir()):
        return
    with contextlib.suppress(OSError):  # another rank was faster
        for file in folder.iterdir():
            file.unlink()
        for empty in made:
            empty.rmdir()


@contextlib.contextmanager
def progress_bar(description: str, total: int, completed: int = 0) -> Iterator[ProgressTask]:
    """A bar with count, share, elapsed time and ETA on the main rank; silent on the others, and without work.

    Where the terminal is too narrow the bar gives way first, then note and description; count and times stay whole.
    """
    columns = (
        _Words("{task.description}"),
        BarColumn(None, table_column=Column(ratio=1)),  # what the others leave
        TaskProgressColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("eta"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        _Words("{task.fields[note]}"),
    )
    hidden = total == 0 or not is_main_rank()
    with Progress(*columns, console=console, disable=hidden, refresh_per_second=2, expand=True) as progress:
        # Not empty: rich gives an empty column a width that it did not count.
        task = progress.add_task(description, total=total, completed=completed, note=" ")
        yield ProgressTask(progress, task)


class _Words(TextColumn):
    """A text on one line, shortened where that has no room."""

    def __init__(self, text: str) -> None:
        super().__init__(text, table_column=Column())  # which rich may make narrower, as no `no_wrap` column

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class ProgressTask:
    """One bar; `advance(note=...)` moves it on and sets the text behind it.

    Where the output is a file, a line every half a minute stands for the moving bar.
    """

    LINE_SECONDS = 30.0

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._last_line = time.monotonic()

    def finish(self) -> None:
        """Fill the bar: what was found done needs no counting."""
        self._progress.update(self._task, completed=self._progress.tasks[self._task].total)

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=steps, **fields)
        if not console.is_terminal and time.monotonic() - self._last_line > self.LINE_SECONDS:
            self._last_line = time.monotonic()
            task = self._progress.tasks[self._task]
            left = (
                "?"
                if task.time_remaining is None
                else str(datetime.timedelta(seconds=int(task.time_remaining)))
            )
            say(
                f"{task.description} {task.completed:.0f}/{task.total:.0f}  eta {left}  {task.fields['note']}"
            )
