"""A validation takes minutes and is no standstill; a signal breaks it off, and the resumed run makes it up."""

import signal
import time

import pytest

from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import latest_checkpoint, step_of
from tests.faults.test_ctrl_c import wait_until

STEPS = ["train.steps=3", "train.checkpoint_every=2", "evaluate.every=2", "evaluate.every_prompts=3"]
SAMPLED = ["evaluate.sampling_steps=12", "evaluate.guidance_scale=1"]


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_validation_that_goes_on_is_no_standstill_and_ends_at_a_signal(start, fault_config, tally, stage):
    run_dir = fault_config.parent / "out" / "faulty"
    command = ["train", fault_config, "name=faulty", f"train.zero_stage={stage}", *STEPS, *SAMPLED]
    # A prompt takes 6 s; one of the ranks has two, the other waits.
    slow = {"hook": "slow_denoising", "seconds": 0.5}
    job = start(*command, "train.watchdog_seconds=4", **slow)
    wait_until(lambda: (run_dir / "metrics.jsonl").is_file() and len(read_rows(run_dir)) == 2)
    time.sleep(5)
    sent = time.time()
    job.signal(1, signal.SIGTERM)
    codes = job.wait(40)
    seconds = max(end["time"] for end in job.exits) - sent
    assert codes == [143, 143], (job.text(0), job.text(1))
    assert step_of(latest_checkpoint(run_dir)) == 2
    shown = run_dir / "validation" / "step-00000002" / "sampling.json"
    assert not shown.is_file()
    start(*command, "--resume").succeed()
    assert shown.is_file() and len(list(shown.parent.glob("*.mp4"))) == 3
    tally(15, 1, read_events(run_dir)[-1]["event"] == "finished", seconds_to_exit=round(seconds, 2))


def read_rows(run_dir) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text().splitlines()
