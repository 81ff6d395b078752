"""What ranks must agree on beside the gradients: over a CPU process group of its own, so that no GPU waits for it."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from pgdpo.messages.errors import InputError

T = TypeVar("T")

# A rank may have a whole validation or download more to do than another. NCCL's process groups give up after ten
# minutes; here the watchdog ends what stands still, and a rank that dies breaks its connections.
LONG = datetime.timedelta(days=30)

_groups: dict[tuple[dist.ProcessGroup, str], dist.ProcessGroup] = {}


class RankError(RuntimeError):
    """What one rank met, raised on all of them; `out_of_space`: every rank that failed had a full disk."""

    def __init__(self, message: str, *, out_of_space: bool = False) -> None:
        super().__init__(message)
        self.out_of_space = out_of_space


def control_group() -> dist.ProcessGroup:
    """The gloo process group for flags and messages; made on the first call, which all ranks must make."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else _group("control")


def background_group() -> dist.ProcessGroup:
    """Another one, for the one thread that works beside the training: its messages never meet the main thread's."""
    return _group("background")


def _group(purpose: str) -> dist.ProcessGroup:
    world = dist.group.WORLD
    if any(made_for is not world for made_for, _ in _groups):
        _groups.clear()  # an earlier process group was destroyed
    if (world, purpose) not in _groups:
        _groups[world, purpose] = dist.new_group(backend="gloo", timeout=LONG)
    return _groups[world, purpose]


def highest(*values: int) -> list[int]:
    """The maximum of each number over the ranks."""
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=control_group())
    return tensor.tolist()


def meet() -> None:
    """Wait for all ranks, however long it takes."""
    dist.barrier(group=control_group())


def gather(value: object, process_group: dist.ProcessGroup | None = None) -> list:
    """Every rank's value, on every rank; plain data of our own processes."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=process_group or control_group())
    return values


def from_main(value: object, process_group: dist.ProcessGroup | None = None) -> object:
    """The main rank's value."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=process_group or control_group())
    return values[0]


def shared(work: Callable[[int, int], T]) -> list[T]:
    """`work(rank, ranks)` of every rank, on every rank; of this process alone without torch.distributed.

    Raises InputError on all ranks where `work` does on one: the lowest one's.
    """
    if not dist.is_initialized():
        return [work(0, 1)]
    value, refused = None, None
    try:
        value = work(dist.get_rank(), dist.get_world_size())
    except InputError as error:
        refused = str(error)
    found = gather((value, refused))
    refused = next((text for _, text in found if text is not None), None)
    if refused is not None:
        raise InputError(refused)
    return [value for value, _ in found]


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on the main rank, which alone does it, on every rank; raises as `shared`."""
    return shared(lambda rank, ranks: work() if rank == 0 else None)[0]


@contextlib.contextmanager
def together(what: str, process_group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Run a block that no rank waits in for another; if it fails on one rank, all raise RankError naming it."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    found = gather(
        None if error is None else (f"{type(error).__name__}: {error}", is_out_of_space(error)), process_group
    )
    failed = {rank: entry for rank, entry in enumerate(found) if entry is not None}
    if failed:
        named = "; ".join(f"rank {rank}: {message}" for rank, (message, _) in failed.items())
        full = all(out_of_space for _, out_of_space in failed.values())
        raise RankError(f"{what} failed on {named}", out_of_space=full) from error


def is_out_of_space(error: BaseException) -> bool:
    """A full disk, a quota, or a limit on the size of files."""
    import errno

    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
