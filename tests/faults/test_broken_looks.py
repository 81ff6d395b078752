"""A signal breaks a look at held-out pairs off; the resumed run makes it up once, and is steered as a straight one."""

import json
import signal
import time

import pytest

from pgdpo.checkpoints.best import read_held_out
from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import latest_checkpoint, step_of
from tests.faults.test_ctrl_c import wait_until
from tests.worlds import losses

STEER = "train.steer.raise_beta={saturated: 0.5, factor: 2, most: 3000}"
RUN = ["train.steps=5", "train.checkpoint_every=5", "evaluate.every=2", "evaluate.every_prompts=0", STEER]


def told(run) -> tuple[list[dict], list[dict]]:
    """Looks without what a clock gave, and decisions."""
    looks = [{k: v for k, v in row.items() if k != "seconds"} for row in read_held_out(run)]
    decided = [
        {k: v for k, v in row.items() if k != "time"} for row in read_events(run) if row["event"] == "steer"
    ]
    return looks, decided


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_broken_look_is_made_up_and_steers_as_any_other(start, fault_config, tally, stage):
    out = fault_config.parent / "out"
    command = ["train", fault_config, f"train.zero_stage={stage}", *RUN]
    start(*command, "name=straight").succeed(120)
    job = start(*command, "name=faulty", hook="slow_looks", seconds=0.4)
    log = out / "faulty" / "run.log"
    # At the start, and after step 2.
    wait_until(lambda: log.is_file() and log.read_text(errors="replace").count("looking") == 2)
    time.sleep(0.6)
    job.signal(1, signal.SIGTERM)
    codes = job.wait(40)
    assert codes == [143, 143], (job.text(0), job.text(1))
    assert step_of(latest_checkpoint(out / "faulty")) == 2
    assert [row["step"] for row in read_held_out(out / "faulty")] == [0]
    # On one rank, which measures all that two did.
    start(*command, "name=faulty", "--resume", ranks=1 if stage == 0 else 2).succeed(120)
    looks, decided = told(out / "faulty")
    assert [row["step"] for row in looks] == [0, 2, 4, 5] and [row["step"] for row in decided] == [2, 4]
    straight = told(out / "straight")
    assert looks[:2] == straight[0][:2] and decided[0] == straight[1][0]
    apart = [abs(a - b) / b for a, b in zip(losses(out, "faulty"), losses(out, "straight"), strict=True)]
    tally(15, 1, max(apart) < 1e-5)


def test_what_a_killed_run_looked_at_is_looked_at_again(start, fault_config):
    """A line without its checkpoint: the run goes on from the one before, and there is one line a step."""
    out = fault_config.parent / "out"
    often = ["train.checkpoint_every=2", "train.steps=4"]
    start("train", fault_config, "name=killed", *RUN, *often).succeed(120)
    run = out / "killed"
    before = told(run)
    latest = latest_checkpoint(run)
    state = json.loads((latest / "state.json").read_text())
    assert state["steering"]["looked"] == 4 and state["steering"]["options"] == {"beta": 2000.0}
    latest.rename(run / "gone")
    start("train", fault_config, "name=killed", *RUN, *often, "--resume").succeed(120)
    looks, decided = told(run)
    assert looks == before[0] and decided == [*before[1], before[1][-1]]
