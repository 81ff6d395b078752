"""Faults 13 to 17: ranks that are killed, stopped, stuck, signalled, or fail inside a save."""

import random
import signal
import time

import pytest

from pgdpo.checkpoints.published import checkpoints_of, latest_checkpoint, step_of
from tests import zygote
from tests.worlds import losses, metrics


def wait_for_step(run_dir, step: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not (run_dir / "metrics.jsonl").is_file() or len(metrics(run_dir.parent, run_dir.name)) < step:
        assert time.monotonic() < until, f"{run_dir} did not reach step {step} in {seconds} s"
        time.sleep(0.01)


@pytest.fixture
def run(start, fault_config, straight):
    """`run(**hook)`: the run `faulty` of 10 steps on two ranks; `run.finish()` resumes it and compares the curves."""
    output = fault_config.parent / "out"

    class Run:
        folder = output / "faulty"

        def __call__(self, *overrides, **hook):
            begin = [] if "--restart" in overrides else ["--resume"]
            return start("train", fault_config, *begin, "name=faulty", "train.steps=10", *overrides, **hook)

        def finish(self) -> bool:
            self().succeed()
            return losses(output, "faulty") == straight(10)

    return Run()


def test_sigkill_of_a_rank(run, tally):
    tried = survived = 0
    longest = 0.0
    for victim in (1, 0):
        job = run(hook="slow_steps", seconds=0.1)
        wait_for_step(run.folder, 3 + 3 * tried)
        killed = time.time()
        job.signal(victim, signal.SIGKILL)
        codes = job.wait(20)
        longest = max(longest, job.exits[1 - victim]["time"] - killed)
        named = f"rank {victim} on" if victim else "rank 0 on"
        tried += 1
        survived += codes[1 - victim] == 1 and named in job.text(1 - victim)
    assert longest <= 5
    tally(13, tried, survived if run.finish() else 0, seconds_to_exit=round(longest, 2))


@pytest.mark.parametrize(
    "fault",
    [
        "a stopped rank",
        pytest.param("the stopped main rank", marks=pytest.mark.slow),
        pytest.param("a stuck loader", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_stands_still(run, tally, fault):
    watchdog, victim = 2.0, 0 if "main" in fault else 1
    hook = {"hook": "stuck_loader", "victim": 1, "batch": 5} if "loader" in fault else {}
    job = run(f"train.watchdog_seconds={watchdog}", **hook)
    wait_for_step(run.folder, 2)
    if not hook:
        job.signal(victim, signal.SIGSTOP)
    stopped = time.time()
    other = job.wait_for(1 - victim) - stopped
    if not hook:
        job.signal(victim, signal.SIGCONT)
    codes = job.wait(20)
    text = job.text(1 - victim)
    named = f"rank {victim} on" in text and "stands still" in text
    if "loader" in fault:
        named = named and "reading the data of step 3" in text
    stacks = (run.folder / f"stacks-rank{1 - victim}.txt").read_text()
    assert other <= watchdog + 5
    assert named, text
    assert "trainer.py" in stacks, stacks
    tally(14, 1, codes[1 - victim] == 1 and codes[victim] != 0, seconds_to_exit=round(other, 2))


def signalled_in_saves(run, trials: int, seed: int = 0) -> int:
    """SIGTERM at a random moment of a save, and a second one a little later."""
    survived, chance = 0, random.Random(seed)
    for number in range(trials):
        if number % 4 == 0:
            run("--restart", hook="slow_saves", seconds=0).succeed()
        before = step_of(latest_checkpoint(run.folder))
        job = run(f"train.steps={before + 20}", hook="slow_saves", seconds=0.2)
        wait_for_step(run.folder, before + 2)
        time.sleep(0.3 * chance.random())
        for _ in range(2):
            for rank in chance.sample([0, 1], chance.choice([1, 2])):
                job.signal(rank, signal.SIGTERM)
            time.sleep(0.1 * chance.random())
        codes = job.wait(40)
        newest = latest_checkpoint(run.folder)
        whole = newest == checkpoints_of(run.folder)[-1] and step_of(newest) > before
        survived += set(codes) <= {143, -15} and whole
    return survived


def test_a_second_sigterm_inside_a_save(run, tally):
    tally(16, 1, signalled_in_saves(run, 1))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_a_second_sigterm_inside_a_save_50_times(run, tally, part):
    tally(16, 10, signalled_in_saves(run, 10, seed=part))


@pytest.mark.parametrize(
    ("phase", "victim"),
    [
        ("gathering", 1),
        ("writing", 1),
        ("hashing", 1),
        pytest.param("making the folder", 0, marks=pytest.mark.slow),
        pytest.param("writing", 0, marks=pytest.mark.slow),
        pytest.param("publishing", 0, marks=pytest.mark.slow),
    ],
)
def test_an_exception_in_a_phase_of_a_save(run, tally, phase, victim):
    job = run("train.micro_batch_groups=2", hook="fail_in_save", victim=victim, phase=phase)
    codes = job.wait(30)
    named = all(f"rank {victim}" in job.text(rank) and "injected" in job.text(rank) for rank in range(2))
    published = [
        path.name for path in (run.folder / "checkpoints").iterdir() if not path.name.startswith(".")
    ]
    assert named, [job.text(rank) for rank in range(2)]
    assert (all(codes), published) == (True, ["step-00000002"]), (codes, job.text(0), job.text(1))
    tally(17, 1, True)


def test_an_exception_beside_the_hashing_of_a_save(run, tally):
    """One rank fails in a step: the save before it is published all the same, on the way out."""
    job = run(hook="fail_beside_a_save", victim=1, step=2)
    codes = job.wait(30)
    named = all("rank 1" in job.text(rank) and "injected" in job.text(rank) for rank in range(2))
    assert named, [job.text(rank) for rank in range(2)]
    tally(17, 1, all(codes) and step_of(latest_checkpoint(run.folder)) == 2)


def test_a_rank_is_not_taken_for_an_earlier_one_of_its_number(monkeypatch):
    """The system gives numbers again, within hours of a suite that starts many processes."""
    monkeypatch.setattr(zygote.os, "fork", lambda: 7)
    exits = {7: {"code": 0, "time": 1.0}, 8: {"code": 0, "time": 1.0}}
    assert zygote._start({"ranks": 1}, exits) == [7]
    assert exits == {8: {"code": 0, "time": 1.0}}
