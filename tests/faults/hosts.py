"""Hosts with addresses and names of their own: network namespaces on this machine, which a switch connects."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

NETWORK = "198.18.77"  # set aside for tests of networks (RFC 2544)


def lacking() -> str | None:
    """Why there can be no hosts here."""
    if not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return "no iproute2, unshare or mount"
    probe = f"pgdpo-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "no right to make network namespaces"
    _ip("netns", "del", probe)
    return None


def _ip(*words: object) -> str:
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Host:
    """One of `hosts`. Its disk is this machine's: a shared file system."""

    def __init__(self, number: int, switch: str, folder: Path) -> None:
        self.name, self.address = f"host{number}", f"{NETWORK}.{number + 1}"
        self._space, self._switch, self._port = f"{switch}-{number}", switch, f"port{number}"
        self._names = folder / f"{self.name}-names"

    def connect(self, count: int) -> None:
        """To the switch. It knows all hosts by name, and itself by a loopback address, as Debian's do."""
        others = "".join(f"{NETWORK}.{n + 1} host{n}\n" for n in range(count) if f"host{n}" != self.name)
        self._names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{others}")
        _ip("netns", "add", self._space)
        _ip(
            "link",
            "add",
            "eth0",
            "netns",
            self._space,
            "type",
            "veth",
            "peer",
            self._port,
            "netns",
            self._switch,
        )
        _ip("-n", self._switch, "link", "set", self._port, "master", "bridge", "up")
        _ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self._space, "link", "set", device, "up")
        _ip("-n", self._space, "route", "add", "default", "dev", "eth0")

    def start(self, command: Sequence[object], log: Path, **environment: object) -> subprocess.Popen:
        """Run a command there; both outputs go to `log`."""
        settle = f'hostname {self.name}; mount --bind {self._names} /etc/hosts; exec "$@"'
        inside = [
            "ip",
            "netns",
            "exec",
            self._space,
            "unshare",
            "--uts",
            "--mount",
            "bash",
            "-c",
            settle,
            "bash",
        ]
        variables = os.environ | {name: str(value) for name, value in environment.items()}
        with log.open("w") as stream:
            words = [*inside, *map(str, command)]
            return subprocess.Popen(
                words, stdout=stream, stderr=stream, env=variables, start_new_session=True
            )

    def signal(self, number: int) -> None:
        """To all of its processes."""
        for pid in map(int, _ip("netns", "pids", self._space).split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut_off(self, off: bool = True) -> None:
        """Its cable is pulled; nobody is told, and connections stay open."""
        _ip("-n", self._switch, "link", "set", self._port, "down" if off else "up")

    def remove(self) -> None:
        self.signal(signal.SIGKILL)
        _ip("netns", "del", self._space)


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """While entered, there are so many; `folder` keeps their tables of names."""
    switch = f"pgdpo-{os.getpid()}"
    made = [Host(number, switch, folder) for number in range(count)]
    with contextlib.ExitStack() as leave:
        _ip("netns", "add", switch)
        leave.callback(_ip, "netns", "del", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in made:
            host.connect(count)
            leave.callback(host.remove)
        yield made
