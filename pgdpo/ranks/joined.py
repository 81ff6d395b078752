"""Several processes that prepare data together: they share the work by files and meet at a few points."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

import psutil
import torch.distributed as dist

from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError

T = TypeVar("T")
GLOO = "GLOO_SOCKET_IFNAME"
ELSEWHERE = "192.0.2.1"  # an address of no machine (RFC 5737): the way to it is the default route


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
        name_interface()
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    try:
        yield ranks
    finally:
        if connect:
            dist.destroy_process_group()


def name_interface() -> None:
    """Tell gloo, over which ranks agree on what to do, the network interface that leads to the launcher's first node.

    Left to itself it listens where this machine's own name points. Debian and Ubuntu point it to 127.0.1.1, where ranks
    on other nodes would wait for it for ever. Nothing is changed where `GLOO_SOCKET_IFNAME` is set, all ranks are on
    this machine, or its name can be reached.
    """
    head, own = os.environ.get("MASTER_ADDR", "localhost"), socket.gethostname()
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # DeepSpeed's launcher does not say
    if GLOO in os.environ or here == os.environ.get("WORLD_SIZE", "1") or not _is_loopback(own):
        return
    if _is_loopback(head):
        if head.partition(".")[0] != own.partition(".")[0]:
            return
        head = ELSEWHERE  # this is the first node, under its name
    interface = _interface_to(head)
    if interface is not None:
        os.environ[GLOO] = interface
        say(
            f"{GLOO} is {interface}: the name of this machine, {own}, means an address that other nodes cannot reach"
        )


def _is_loopback(host: str) -> bool:
    """Whether a name means this machine alone; one without an address does to gloo."""
    try:
        address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return True
    return ipaddress.ip_address(address).is_loopback


def _interface_to(host: str) -> str | None:
    """The network interface through which a host is reached; None if it is not."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # chooses the way and sends nothing
            source = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, own in interfaces if source in {each.address for each in own}), None)
