"""Two streams: our own lines on the terminal, everything that libraries say in the run's log file."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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


@contextlib.contextmanager
def chatter_to(log_file: Path, *, terminal: int = 1) -> Iterator[None]:
    """Send file descriptors 1 and 2 to `log_file`, and keep the terminal for `say` and the progress bars.

    `terminal`: the descriptor that these go to; 2 where what is printed is read by a program.

    An InputError before anything else was written takes the log and its folders back.
    Descriptors, because DeepSpeed, xformers and gloo print from C++ and from loggers made at import.
    """
    if not is_main_rank():
        log_file = log_file.with_stem(f"{log_file.stem}-rank{os.environ['RANK']}")
    made = [folder for folder in log_file.parents if not folder.exists()]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    shown = os.fdopen(os.dup(terminal), "w", buffering=1)
    previous = (
        None if console.file is sys.stdout else console.file
    )  # None: sys.stdout, whatever it is by then
    console.file = shown
    with log_file.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.captureWarnings(True)
    try:
        yield
    except InputError:
        _clean_up(log_file.parent, made)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        console.file = previous
        shown.close()
        for descriptor in saved:
            os.close(descriptor)


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
