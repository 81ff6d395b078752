"""Fault 24: a host of two stops, dies or is cut off; the other names it and ends, and the run goes on on both."""

import re
import signal
import time

import pytest

from tests.cli.test_cluster import CLUSTER
from tests.faults import hosts
from tests.faults.test_launchers import ENVIRONMENT
from tests.faults.test_processes import wait_for_step
from tests.worlds import losses, metrics

WATCHDOG = 6.0  # seconds
LACKING = hosts.lacking()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(LACKING is not None, reason=f"no two hosts: {LACKING}"),
]


@pytest.fixture
def pair(tmp_path):
    with hosts.hosts(2, tmp_path) as made:
        yield made


@pytest.mark.parametrize("victim", [0, 1], ids=["the main rank's", "the other"])
@pytest.mark.parametrize("fault", ["killed", "stopped", "cut off"])
def test_a_host_that(pair, fault_config, straight, tmp_path, tally, fault, victim):
    run_dir = fault_config.parent / "out" / "hosts"
    train = ["bash", CLUSTER / "torchrun.sh", "train", fault_config, "name=hosts", "train.checkpoint_every=3"]
    train += [f"train.watchdog_seconds={WATCHDOG}"]

    def launch(*overrides):
        where = ENVIRONMENT | {"HEAD": pair[0].address, "NODES": 2, "GPUS": 1}
        command, log = [*train, *overrides], f"{len(overrides)}.txt"
        return [
            host.start(command, tmp_path / f"{host.name}-{log}", NODE=node, **where)
            for node, host in enumerate(pair)
        ]

    started = launch("train.steps=10000")
    wait_for_step(run_dir, 4, seconds=200)
    fall = {"killed": lambda: pair[victim].signal(signal.SIGKILL), "cut off": pair[victim].cut_off}
    fall.get(fault, lambda: pair[victim].signal(signal.SIGSTOP))()
    fell, watching = time.monotonic(), [1 - victim] if fault != "cut off" else [0, 1]
    log = {node: tmp_path / f"host{node}-1.txt" for node in watching}
    named, ended = {}, {}
    while len(ended) < len(watching):
        now = time.monotonic() - fell
        assert now < 60, [log[node].read_text() for node in watching]
        for node in watching:
            other = rf"error: rank {node}.*: rank {1 - node} on .*(is gone|stands still)"
            if node not in named and re.search(other, log[node].read_text()):
                named[node] = round(now, 1)
            if node not in ended and started[node].poll() is not None:
                ended[node] = round(now, 1)
        time.sleep(0.05)
    assert all(started[node].returncode == 1 for node in watching)
    assert named.keys() == ended.keys(), [log[node].read_text() for node in watching]
    for host in pair:
        host.signal(signal.SIGKILL)
    if fault == "cut off":
        pair[victim].cut_off(False)

    steps, resumed = len(metrics(run_dir.parent, "hosts")) + 2, time.monotonic()
    codes = [process.wait(200) for process in launch(f"train.steps={steps}", "--resume")]
    tally(
        24,
        1,
        codes == [0, 0]
        and losses(run_dir.parent, "hosts") == straight(steps)
        and max(ended.values()) < WATCHDOG + 5,
        seconds_until_named=max(named.values()),
        seconds_until_ended=max(ended.values()),
        seconds_to_resume_and_finish=round(time.monotonic() - resumed, 1),
    )
