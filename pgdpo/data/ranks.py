"""Several processes that prepare data together: they share the work by files and meet at a few points."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch.distributed as dist

from pgdpo.errors import InputError

T = TypeVar("T")


class Ranks:
    """This process among those that a launcher (torchrun, deepspeed, srun) started; alone without one."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank. Raises InputError where another rank has ended."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise InputError(
                f"rank {self.rank}: another rank has ended: its message stands above, or in its run-rank<n>.log"
            ) from error
        return values

    def main_first(self, make: Callable[[], T]) -> T:
        """`make()` on the main rank, and when that is done on the others. What it refuses there is raised on all."""
        result, refused = None, None
        if self.rank == 0:
            try:
                result = make()
            except InputError as error:
                refused = str(error)
        refused = self.gather(refused)[0]
        if refused is not None:
            raise InputError(refused)
        return result if self.rank == 0 else make()


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The launcher's processes, connected over the CPU; they may be hours apart where one has more to do."""
    ranks = Ranks()
    connect = ranks.count > 1 and not dist.is_initialized()
    if connect:
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    try:
        yield ranks
    finally:
        if connect:
            dist.destroy_process_group()
