"""Work that threads do ahead of whoever takes it: reading, decoding, hashing, which let go of Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    make: Callable[[T], R], items: Iterable[T], *, threads: int, most: int
) -> Iterator[tuple[T, Future[R]]]:
    """(item, what `make(item)` comes to), in the order of the items, which are asked for as they are begun.

    Of at most `most` items the work is begun or done and not taken yet. What it raises is raised by the item's
    `result()`, in its turn. Left early, what is begun is waited for and no more is.
    """
    left = iter(items)
    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for item in islice(left, most - len(waiting)):
                waiting.append((item, pool.submit(make, item)))
            if not waiting:
                break
            yield waiting.popleft()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown(wait=False)  # what was handed out may be waited for later


class Behind:
    """A thread that finishes one thing while the next is made. At most one is not done when another is begun; what is
    begun is waited for at the end, also where that is an error's."""

    def __enter__(self) -> Behind:
        self._pool, self._last = ThreadPoolExecutor(1), None
        return self

    def begin(self, finish: Callable[[], R]) -> Future[R]:
        """Raises what the one before has raised."""
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(finish)
        return self._last

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
