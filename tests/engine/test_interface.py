"""Which network interface gloo is told, by real routes of this machine under names that mean what they do elsewhere."""

import os
import socket

import psutil
import pytest

from pgdpo.ranks.joined import ELSEWHERE, GLOO, _interface_to, name_interface

pytestmark = pytest.mark.quick
ADDRESSES = {  # IPv4 addresses by interface
    name: next((each.address for each in own if each.family == socket.AF_INET), None)
    for name, own in psutil.net_if_addrs().items()
}
NETWORK = next(((name, at) for name, at in ADDRESSES.items() if at and not at.startswith("127.")), None)
TWO_NODES = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def found(monkeypatch):
    """(environment, address of this machine's name `node0`) -> the interface that gloo is told."""

    def find(environment: dict, own: str | None) -> str | None:
        real = socket.getaddrinfo

        def resolved(host, *arguments, **options):
            if host.partition(".")[0] == "node0" and own is None:
                raise socket.gaierror("no such name")
            return real(own if host.partition(".")[0] == "node0" else host, *arguments, **options)

        monkeypatch.setattr(socket, "gethostname", lambda: "node0")
        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        monkeypatch.setenv(GLOO, "")  # so that what is set in its place is undone
        monkeypatch.delenv(GLOO)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        name_interface()
        return os.environ.get(GLOO)

    return find


@pytest.mark.skipif(NETWORK is None, reason="there is loopback alone")
@pytest.mark.parametrize("own", ["127.0.1.1", None])
@pytest.mark.parametrize("launcher", [TWO_NODES, {"WORLD_SIZE": "4"}], ids=["torchrun", "deepspeed"])
def test_the_interface_on_the_way_to_the_first_node(found, launcher, own):
    name, address = NETWORK
    assert found(launcher | {"MASTER_ADDR": address}, own) == name


@pytest.mark.skipif(_interface_to(ELSEWHERE) is None, reason="there is no default route")
@pytest.mark.parametrize("head", ["node0", "node0.cluster"])
def test_on_the_first_node_itself_that_of_the_default_route(found, head):
    with open("/proc/net/route", encoding="ascii") as file:
        routes = [line.split() for line in file]
    default = next(name for name, destination, *_ in routes if destination == "00000000")
    assert found(TWO_NODES | {"MASTER_ADDR": head}, "127.0.1.1") == default


@pytest.mark.parametrize(
    ("environment", "own", "interface"),
    [
        (TWO_NODES | {"MASTER_ADDR": ELSEWHERE, GLOO: "ib0"}, "127.0.1.1", "ib0"),
        (TWO_NODES | {"MASTER_ADDR": ELSEWHERE}, "192.0.2.7", None),
        (TWO_NODES | {"MASTER_ADDR": "127.0.0.1"}, "127.0.1.1", None),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "127.0.1.1", None),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0"}, "127.0.1.1", None),
        ({"WORLD_SIZE": "1"}, "127.0.1.1", None),
    ],
    ids=[
        "named by the user",
        "a name that is reached",
        "both nodes here",
        "no launcher's count",
        "one node",
        "alone",
    ],
)
def test_nothing_is_changed_where_nothing_need_be(found, environment, own, interface):
    assert found(environment, own) == interface
