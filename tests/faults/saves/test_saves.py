"""Faults 1 and 2: SIGKILL at a random moment of a save; the curve goes on as if nothing had happened.

A save ends when its checkpoint is published, some steps after the training was let go.
"""

import itertools
import json
import os
import random
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from pgdpo.checkpoints import checkpoint
from pgdpo.checkpoints.checkpoint import Checkpoints
from pgdpo.checkpoints.published import (
    checkpoints_of,
    find_damage,
    latest_checkpoint,
    prune,
    publish,
    step_of,
    temporary_folder,
)
from pgdpo.checkpoints.shards import HashedFiles
from pgdpo.engine.engine import start_distributed
from pgdpo.training.step import Step
from tests.worlds import losses, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


def kill_in_saves(start, config, straight, trials: int, steps: int, seed: int = 0) -> int:
    """Kill, resume, kill again: trials in which a complete checkpoint stood, at most one interval behind."""
    output, interval, survived, run = config.parent / "out", 2, 0, 0
    expected = straight(steps)
    chance = random.Random(seed)
    while trials:
        name, run = f"killed{run}", run + 1
        before, done = 0, False
        while not done:
            hook = {"victim": chance.randrange(2), "save": 1, "fraction": chance.random()} if trials else {}
            hook |= {"hashing": chance.choice([0, 0.1])} if trials else {}
            end = (
                steps if trials else min(steps, before + 2 * interval)
            )  # the last one need not go all the way
            job = start(
                "train", config, "--resume", f"name={name}", f"train.steps={end}",
                hook="kill_in_save" if hook else None, **hook,
            )  # fmt: skip
            codes = job.wait()
            done = not any(codes)
            if done:
                break
            assert -9 in codes, [job.text(rank) for rank in range(2)]
            newest = latest_checkpoint(output / name)
            # one save was published in this start, the next one is the one that was killed
            survived += newest is not None and step_of(newest) in (before + interval, before + 2 * interval)
            before, trials = step_of(newest), trials - 1
        assert losses(output, name) == expected[:end]
    return survived


def test_sigkill_in_a_save(start, fault_config, straight, tally):
    tally(1, 3, kill_in_saves(start, fault_config, straight, 3, steps=14))


def resave_until_killed(run_dir, chance: random.Random) -> None:
    """A child saves step 2 again and again, with other bytes each time, until it is killed at a random moment."""
    pid = os.fork()
    if pid == 0:
        for number in itertools.count():
            write(run_dir, 2, number)
            prune(run_dir, keep=1)
    time.sleep(0.01 + chance.random() * 0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def write(run_dir, step: int, number: int) -> None:
    folder = temporary_folder(run_dir, step)
    parts = {
        "state.json": json.dumps({"number": number}).encode(),
        "weights-0.safetensors": bytes([number % 256]) * 100_000,
    }
    files = HashedFiles(folder)
    for name, part in parts.items():
        files.add(name, [part])
    publish(folder, files.hashes())


def resave(run_dir, trials: int) -> int:
    """Trials after which step 2 is there, valid, and every file of it is of one and the same save."""
    survived, chance = 0, random.Random(0)
    write(run_dir, 2, 0)
    for _ in range(trials):
        resave_until_killed(run_dir, chance)
        newest = latest_checkpoint(run_dir)
        if newest is not None and step_of(newest) == 2:
            number = json.loads((newest / "state.json").read_text())["number"]
            survived += set((newest / "weights-0.safetensors").read_bytes()) == {number % 256}
    return survived


def test_sigkill_while_a_step_is_saved_again(tmp_path, tally):
    tally(2, 10, resave(tmp_path, 10))


@pytest.mark.slow
def test_sigkill_while_a_step_is_saved_again_100_times(tmp_path, tally):
    tally(2, 100, resave(tmp_path, 100))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_sigkill_in_a_save_200_times(start, fault_config, straight, tally, part):
    tally(1, 25, kill_in_saves(start, fault_config, straight, 25, steps=60, seed=part))


def test_training_goes_on_while_a_save_is_hashed(config_file, monkeypatch):
    """The save of step 2 is held up until step 3 is trained: neither waits for the other for ever."""
    run_dir = config_file.parent / "out" / "dpo"
    trained, met, published = threading.Event(), [], []
    take, publishing = Step.take, Checkpoints._publish

    def stepping(self, loaded):
        values = take(self, loaded)
        if self.done == 3:
            published.extend(checkpoints_of(run_dir))
            trained.set()
        return values

    def held_up(self, *arguments):
        met.append(trained.wait(60))
        return publishing(self, *arguments)

    monkeypatch.setattr(Step, "take", stepping)
    monkeypatch.setattr(Checkpoints, "_publish", held_up)
    run_pgdpo("train", config_file)
    assert met == [True, True] and published == []
    assert [path.name for path in checkpoints_of(run_dir)] == ["step-00000002", "step-00000004"]
    assert not any(map(find_damage, checkpoints_of(run_dir)))


def test_whoever_asks_for_the_newest_waits_for_the_one_that_is_hashed(tmp_path, monkeypatch):
    """As a rollback does, right after a save."""

    def slowly(*arguments):
        time.sleep(0.2)
        return publish(*arguments)

    start_distributed()
    monkeypatch.setattr(checkpoint, "publish", slowly)
    (tmp_path / "checkpoints").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    engine = SimpleNamespace(module=torch.nn.BatchNorm1d(3), zero_optimization_stage=lambda: 0)
    engine.module.requires_grad_(False)
    for step in (7, 8):
        checkpoints.save(engine, step, {})
        assert step_of(checkpoints.newest()) == step
    assert step_of(checkpoints.finish()) == 8
