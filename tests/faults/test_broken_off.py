"""Fault 15: a signal to one rank stops all at one step; one that is being computed is broken off, wherever it is."""

import random
import re
import signal
import time

import pytest

from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import latest_checkpoint, step_of
from pgdpo.reference.store import read_rows
from tests.faults.test_ctrl_c import wait_until
from tests.faults.test_processes import wait_for_step
from tests.worlds import losses, metrics

BLOCK = 0.1  # seconds; a micro-batch passes six of them, or eight where two are computed again


@pytest.mark.parametrize(
    ("stage", "checkpointing", "trained", "name"),
    [
        (3, "full", "all", "SIGTERM"),
        pytest.param(0, "none", "adapter", "SIGTERM", marks=pytest.mark.slow),
        pytest.param(1, "none", "adapter", "SIGUSR1", marks=pytest.mark.slow),
        pytest.param(2, "full", "all", "SIGTERM", marks=pytest.mark.slow),
        pytest.param(3, "none", "adapter", "SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_breaks_a_step_off_between_two_blocks(
    start, fault_config, straight, tally, stage, checkpointing, trained, name
):
    run_dir = fault_config.parent / "out" / "faulty"
    command = ["train", fault_config, "name=faulty", "train.steps=4", "train.checkpoint_every=1000"]
    command += [f"train.zero_stage={stage}", f"model.gradient_checkpointing={checkpointing}"]
    command += [] if trained == "adapter" else ["model.adapter=null"]
    job = start(*command, hook="slow_blocks", seconds=BLOCK)
    wait_for_step(run_dir, 1)
    time.sleep(random.Random(stage).random() * 6 * BLOCK)
    sent = time.time()
    job.signal(1, getattr(signal, name))
    codes = job.wait(40)
    seconds = max(end["time"] for end in job.exits) - sent
    blocks = re.findall(r"^block (\S+)$", (run_dir / "run-rank1.log").read_text(), re.M)
    assert (
        len([when for when in blocks if float(when) > sent]) <= 2
    )  # the one that ran, the one that told the others
    saved = step_of(latest_checkpoint(run_dir))
    assert [event["step"] for event in read_events(run_dir) if event["event"] == "stopped"] == [saved]
    assert saved == len(metrics(run_dir.parent, "faulty"))
    start(*command, "--resume").succeed()
    if stage:
        start(*command, "name=straight").succeed()
    whole = losses(run_dir.parent, "straight") if stage else straight(4)
    tally(
        15,
        1,
        codes == [143, 143] and losses(run_dir.parent, "faulty") == whole,
        seconds_to_exit=round(seconds, 2),
    )


def test_a_signal_ends_the_pass_of_the_reference_and_loses_nothing(start, fault_config):
    command = ["reference", fault_config, "name=faulty", "train.cached_draws=1"]
    folder = fault_config.parent / "out" / "reference"
    job = start(*command, hook="slow_blocks", seconds=BLOCK)
    log = fault_config.parent / "out" / "faulty" / "run-rank1.log"
    wait_until(lambda: log.is_file() and log.read_text().count("block") > 3)
    job.signal(1, signal.SIGTERM)
    assert job.wait(40) == [143, 143]
    assert "what was computed is written: go on with the same command" in job.text(0)
    (key,) = folder.iterdir()
    assert 0 < computed(key) < 12
    start(*command).succeed()
    assert computed(key) == 12


def computed(folder) -> int:
    return sum(len(rows.items()) for rows in read_rows(folder).values())
