"""Fault 15 by hand: the first Ctrl-C saves and says how to go on, the second ends at once; alone and under launchers.

A terminal sends SIGINT to its whole foreground group.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import latest_checkpoint, step_of
from tests.faults.test_processes import wait_for_step
from tests.ranks import ROOT
from tests.worlds import losses, metrics

RARELY = "train.checkpoint_every=1000"


def stopped_at(run_dir) -> int:
    """The step of the one `stopped` event, which is that of the checkpoint and of the last row of the metrics."""
    [event] = [event for event in read_events(run_dir) if event["event"] == "stopped"]
    assert "Ctrl-C" in event["message"]
    assert event["step"] == step_of(latest_checkpoint(run_dir)) == len(metrics(run_dir.parent, run_dir.name))
    return event["step"]


def wait_until(holds, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_first_saves_and_says_how_to_go_on(start, fault_config, straight, tally, count):
    run_dir = fault_config.parent / "out" / "faulty"
    command = ["train", fault_config, "name=faulty", "train.steps=10", RARELY]
    job = start(*command, ranks=count, hook="slow_steps", seconds=0.05)
    wait_for_step(run_dir, 2)
    for rank in range(count):
        job.signal(rank, signal.SIGINT)
        job.signal(
            rank, signal.SIGINT
        )  # as wrappers do that pass on what the terminal has sent: it is the same
    codes = job.wait(40)
    step = stopped_at(run_dir)
    text = job.text(0)
    assert "Ctrl-C: stopping to save; Ctrl-C again ends at once" in text
    assert f"stopped: Ctrl-C after step {step}; go on with --resume" in text and "Traceback" not in text
    start(*command, "--resume", ranks=2).succeed()
    assert read_events(run_dir)[-1]["event"] == "finished"
    same = losses(run_dir.parent, "faulty") == pytest.approx(straight(10), rel=0 if count == 2 else 1e-4)
    tally(15, 1, codes == [130] * count and same)


@pytest.mark.parametrize("waits", ["in a save", "for another rank"])
def test_the_second_ends_at_once_whatever_the_run_waits_for(start, fault_config, tally, waits):
    run_dir = fault_config.parent / "out" / "faulty"
    hook = {"hook": "slow_saves"} if waits == "in a save" else {"hook": "slow_rank", "victim": 1, "step": 3}
    job = start("train", fault_config, "name=faulty", RARELY, seconds=30, **hook)
    wait_for_step(run_dir, 3)
    for press in range(2):
        time.sleep(1.0)
        for rank in range(2):
            job.signal(rank, signal.SIGINT)
        pressed = time.time()
        assert press or "Ctrl-C again" in wait_for_text(job)
    codes = job.wait(20)
    longest = max(end["time"] for end in job.exits) - pressed
    assert longest < 3 and 130 in codes and set(codes) <= {130, 1}, codes  # 1: one that lost the other first
    last = read_events(run_dir)[-1]
    assert last["event"] == "stopped" and "twice" in last["message"]
    tally(15, 1, not list((run_dir / "checkpoints").glob("step-*")), seconds_to_exit=round(longest, 2))


def wait_for_text(job, words: str = "Ctrl-C again") -> str:
    wait_until(lambda: words in job.text(0), 10)
    return job.text(0)


def launched(*command, **options) -> subprocess.Popen:
    """In a session of its own, as a terminal's foreground job, whose group is the process's id."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    # A shell's background jobs ignore SIGINT, and hand that on; a terminal's do not.
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def test_while_a_run_loads_it_leaves_a_line_and_no_traceback(fault_config):
    process = launched(sys.executable, "-m", "pgdpo", "train", fault_config, "name=loading")
    wait_until((fault_config.parent / "out" / "loading" / "run.log").is_file)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip().endswith("stopped: Ctrl-C"), said
    assert "Traceback" not in said
    assert not read_events(fault_config.parent / "out" / "loading")


LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": [f"{sys.exec_prefix}/bin/torchrun", "--nproc-per-node", "2"],
    "deepspeed": [shutil.which("deepspeed", path=f"{sys.exec_prefix}/bin"), "--num_gpus", "2"],
}


def launch_hooked(launcher: str, hook: str, options: str, *command) -> subprocess.Popen:
    module = "--module" if launcher == "deepspeed" else "-m"
    return launched(*LAUNCHERS[launcher], module, "tests.faults.hooked", hook, options, *command)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_first_saves_under_real_launchers(fault_config, launcher):
    run_dir = fault_config.parent / "out" / "launched"
    command = ["train", fault_config, "name=launched", RARELY]
    process = launch_hooked(launcher, "slow_steps", '{"seconds": 0.1}', *command)
    wait_for_step(run_dir, 3, seconds=120)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)  # until the last of them has closed it
    assert "Ctrl-C again ends at once" in said, said
    assert f"stopped: Ctrl-C after step {stopped_at(run_dir)}; go on with --resume" in said
    # torchrun and deepspeed end with what they make of their own interruption.
    assert process.returncode == {"python": 130, "torchrun": 1, "deepspeed": -signal.SIGINT}[launcher]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_second_ends_at_once_under_real_launchers(fault_config, launcher):
    run_dir = fault_config.parent / "out" / "launched"
    process = launch_hooked(
        launcher, "slow_saves", '{"seconds": 25}', "train", fault_config, "name=launched", RARELY
    )
    wait_for_step(run_dir, 3, seconds=120)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(3)
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - pressed < 5, said  # its ranks have closed their output: they are gone
    assert process.returncode != 0 and not list((run_dir / "checkpoints").glob("step-*"))
