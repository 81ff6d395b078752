"""Fault 23: a stop from outside reaches the launcher, as a scheduler's does: all ranks of all nodes save and end."""

import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import latest_checkpoint, step_of
from tests.cli.test_cluster import BIN, CLUSTER
from tests.faults.test_processes import wait_for_step
from tests.ranks import PINNED, ROOT
from tests.worlds import losses, metrics, save_tiny_wan, write_config

ENVIRONMENT = {**os.environ, **PINNED, "PATH": f"{BIN}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(command: list, log: Path, **environment: object) -> subprocess.Popen:
    variables = ENVIRONMENT | {name: str(value) for name, value in environment.items()}
    words = [str(word) for word in command]
    with log.open("w") as stream:
        return subprocess.Popen(
            words, cwd=ROOT, env=variables, stdout=stream, stderr=stream, start_new_session=True
        )


def stopped_and_saved(run_dir: Path) -> bool:
    """At one step: that of the event, of the checkpoint and of the last row of the metrics."""
    [event] = [event for event in read_events(run_dir) if event["event"] == "stopped"]
    steps = len(metrics(run_dir.parent, run_dir.name))
    return event["message"].startswith("SIGTERM") and event["step"] == steps == step_of(
        latest_checkpoint(run_dir)
    )


def test_sigterm_to_one_nodes_torchrun_stops_both_and_the_run_goes_on(
    fault_config, straight, ranks, tmp_path, tally
):
    """Two nodes on this machine: a launcher each, of one rank."""
    run_dir = fault_config.parent / "out" / "nodes"
    train = [
        "bash",
        CLUSTER / "torchrun.sh",
        "train",
        fault_config,
        "name=nodes",
        "train.checkpoint_every=1000",
        "train.steps=10000",
    ]

    where = {"HEAD": "127.0.0.1", "NODES": 2, "GPUS": 1, "PORT": free_port()}
    where |= {"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [tmp_path / f"node{node}.txt" for node in range(2)]
    started = [launch(train, log, NODE=node, **where) for node, log in enumerate(logs)]
    wait_for_step(run_dir, 2, seconds=120)
    time.sleep(0.3 * random.random())
    victim = random.randrange(2)
    started[victim].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in started] == [1, 1]  # torchrun's own code
    said = [log.read_text() for log in logs]
    assert "exitcode  : 143" in said[1 - victim], said[1 - victim]  # of the node whose launcher heard nothing
    assert all("NCCL_DEBUG=INFO" in text and "NCCL_SOCKET_IFNAME=^lo,docker" in text for text in said)
    assert "stopped: SIGTERM after step" in said[0] and stopped_and_saved(run_dir)

    steps = len(metrics(run_dir.parent, "nodes")) + 2
    goes_on = ("train.checkpoint_every=1000", f"train.steps={steps}", "--resume")
    ranks.run(
        ["train", fault_config, "name=nodes", *goes_on], ranks=2
    )  # by no launcher, which is as long again
    assert (run_dir / "run-rank1.log").is_file()
    curve = losses(run_dir.parent, "nodes")
    assert curve[0] == np.log(np.float32(2)) and len(curve) == steps
    tally(23, 1, curve == straight(steps))


LAYERS, FORWARD, BACKWARD = (
    20,
    0.4,
    1.2,
)  # seconds: a micro-batch takes 8 + 8 + 24, policy, reference, backward


@pytest.fixture
def deep_config(world, tmp_path) -> Path:
    """As `fault_config`, of a transformer with as many blocks as make a large model's stop a fine one."""
    output = tmp_path / "out"
    output.mkdir()
    for shared in ("prepared", "toy"):
        (output / shared).symlink_to(world / "out" / shared)
    train = {"steps": 3, "global_batch_groups": 4, "micro_batch_groups": 1, "checkpoint_every": 1000}
    model = save_tiny_wan(tmp_path / "deep_wan", layers=LAYERS)
    return write_config(tmp_path / "config.yaml", output, model, train=train)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(5))
def test_sigterm_to_torchrun_in_a_micro_batch_of_40_seconds(start, deep_config, tmp_path, tally, part):
    """Twenty times at random moments of a step of two; four runs at a time, which mostly sleep."""
    output, chance = deep_config.parent / "out", random.Random(part)
    start("train", deep_config, "name=straight").succeed(240)
    whole = losses(output, "straight")
    options = f'{{"after": 1, "forward": {FORWARD}, "backward": {BACKWARD}}}'

    class Trial:
        def __init__(self, number: int) -> None:
            self.folder, self.log = output / f"trial{number}", tmp_path / f"trial{number}.txt"
            self.command = ["train", deep_config, f"name=trial{number}"]
            port = ["--nproc-per-node", 2, "--master-port", free_port()]
            hooked = [*port, "-m", "tests.faults.hooked", "slow_passes", options, *self.command]
            self.process = launch([BIN / "torchrun", *hooked], self.log)

        def stop(self) -> None:
            self.sent = time.time()
            self.process.send_signal(signal.SIGTERM)

        def figures(self) -> dict[str, float]:
            logs = [self.folder / "run.log", self.folder / "run-rank1.log"]
            blocks = [
                float(when) for log in logs for when in re.findall(r"^block (\S+)$", log.read_text(), re.M)
            ]
            saved = latest_checkpoint(self.folder) / "manifest.json"
            ends = {"computing": max(blocks), "saved": saved.stat().st_mtime, "ended": self.ended}
            return {name: round(when - self.sent, 2) for name, when in ends.items()}

    trials = [Trial(4 * part + number) for number in range(4)]
    for trial in trials:
        wait_for_step(trial.folder, 1, seconds=300)
    begun = time.time()
    moments = sorted(80 * chance.random() for _ in trials)
    for trial, moment in zip(trials, moments, strict=True):
        time.sleep(max(0.0, begun + moment - time.time()))
        trial.stop()
        trial.code = trial.process.wait(60)
        trial.ended = time.time()
    figures = [trial.figures() for trial in trials]
    assert [trial.code for trial in trials] == [1] * 4, [trial.log.read_text() for trial in trials]
    survived = sum(
        figure["ended"] <= 30 and figure["saved"] <= 10 and stopped_and_saved(trial.folder)
        for trial, figure in zip(trials, figures, strict=True)
    )
    for trial in trials:
        start(*trial.command, "--resume").succeed(240)
        survived -= losses(output, trial.folder.name) != whole
    tally(23, 4, survived, seconds_after_sigterm=figures, moments=[round(moment, 1) for moment in moments])


@pytest.mark.slow
def test_sigterm_to_a_rank_of_deepspeed(fault_config, straight, start, tmp_path, tally):
    """What configs/cluster/deepspeed.sh says: the launcher itself would leave its ranks behind."""
    run_dir = fault_config.parent / "out" / "launched"
    command = ["train", fault_config, "name=launched", "train.checkpoint_every=1000"]
    where = ["--num_gpus", 2, "--master_port", free_port(), "--module", "pgdpo"]
    process = launch([BIN / "deepspeed", *where, *command], tmp_path / "log.txt")
    wait_for_step(run_dir, 2, seconds=120)
    pattern = f"-u -m pgdpo --local_rank=. {' '.join(map(str, command))}"  # ours alone
    subprocess.run(["pkill", "-TERM", "-f", "--", pattern], check=True)
    assert process.wait(60) == 143 and stopped_and_saved(run_dir)
    start(*command, "--resume").succeed()
    tally(23, 1, losses(run_dir.parent, "launched")[:14] == straight(14))
