"""Faults put into a rank before it starts; each runs inside the forked rank, none is part of the product."""

from __future__ import annotations

import errno
import json
import os
import signal
import time


def kill_in_save(rank: int, *, victim: int, save: int, fraction: float, hashing: float) -> None:
    """SIGKILL of `victim` in its `save`-th save (from 0; the first is timed), at a fraction of its length.

    The length is that from the first file to the end of the publication. `hashing`: seconds for which the hashes are
    held up, while the next steps are trained.
    """
    from pgdpo.checkpoints.checkpoint import Checkpoints
    from pgdpo.training.costs import Costs

    # A rank that is killed soon needs no count of them, which takes most of its start.
    Costs._flops = [1.0] * 99
    whole, publish, began, seconds = Checkpoints.save, Checkpoints._publish, [], []

    def saving(self, *arguments, **options):
        self.finish()
        if rank == victim and len(began) == save:
            _kill_after(1.1 * fraction * min(seconds))
        if rank == victim and len(began) > save:  # it took less time than the first: it is published
            os.kill(os.getpid(), signal.SIGKILL)
        began.append(time.perf_counter())
        whole(self, *arguments, **options)

    def publishing(self, *arguments):
        time.sleep(hashing)
        path = publish(self, *arguments)
        seconds.append(time.perf_counter() - began[-1])
        return path

    Checkpoints.save, Checkpoints._publish = saving, publishing


def _kill_after(seconds: float) -> None:
    """From a process of its own, which no lock of this one delays."""
    victim = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        os.kill(victim, signal.SIGKILL)
        os._exit(0)


def save_once_more(rank: int) -> None:
    """A resumed run that has no step left saves what it loaded, before it ends."""
    from pgdpo.training.saves import Saves

    begin = Saves.begin

    def begin_and_save(self, **options):
        begin(self, **options)
        self.save()

    Saves.begin = begin_and_save


def slow_steps(rank: int, *, seconds: float) -> None:
    """Every micro-batch takes so long, so that a signal finds the run where the test wants it."""
    from pgdpo.training.step import Step

    whole = Step.group_loss

    def slowly(self, batch):
        time.sleep(seconds)
        return whole(self, batch)

    Step.group_loss = slowly


def slow_blocks(rank: int, *, seconds: float) -> None:
    """Each block of the transformer takes so long, forward and backward, and prints when; ranks look at each."""
    from pgdpo.engine import blocks
    from pgdpo.guards import signals

    def passed():
        time.sleep(seconds)
        print("block", time.time(), flush=True)  # to the run's log

    signals.LOOK_SECONDS = 0
    blocks._told.append(passed)


def slow_passes(rank: int, *, after: int, forward: float, backward: float) -> None:
    """As of the step `after` (from 0) each block takes so long, as a large model's do, and prints when it began."""
    from pgdpo.engine import blocks
    from pgdpo.training.step import Step

    tell, take, at = blocks._tell, Step.take, []

    def stepping(self, loaded):
        at[:] = [self.done]
        return take(self, loaded)

    def slowly(gradient=None):
        if at[0] >= after:
            print("block", time.time(), flush=True)  # to the run's log
            time.sleep(forward if gradient is None else backward)
        tell(gradient)

    blocks._tell, Step.take = slowly, stepping


def slow_denoising(rank: int, *, seconds: float) -> None:
    """Each denoising step takes so long."""
    from pgdpo.messages import progress

    class Slow:
        def moved(self, what: str) -> None:
            if "denoising step" in what:
                time.sleep(seconds)

        def stage(self, what: str) -> None:
            pass

    progress._listeners.append(Slow())


def slow_looks(rank: int, *, seconds: float) -> None:
    """Each batch of held-out pairs takes so long; that a look at them begins is said."""
    from pgdpo.training.held_out.measure import Measure

    sample, whole = Measure._sample, Measure.numbers

    def slowly(self, number):
        time.sleep(seconds)
        return sample(self, number)

    def telling(self, *arguments):
        print("looking", flush=True)
        return whole(self, *arguments)

    Measure._sample, Measure.numbers = slowly, telling


def slow_rank(rank: int, *, victim: int, step: int, seconds: float) -> None:
    """One rank takes so long in a step (from 0), and all others wait for it in a collective."""
    from pgdpo.training.step import Step

    take = Step.take

    def stepping(self, loaded):
        if rank == victim and self.done == step:
            time.sleep(seconds)
        return take(self, loaded)

    Step.take = stepping


def slow_saves(rank: int, *, seconds: float) -> None:
    """The main rank waits while it writes, and again before it publishes."""
    from pgdpo.checkpoints import checkpoint

    whole, written = checkpoint.publish, checkpoint.HashedFiles.written

    def slowly(*arguments):
        time.sleep(seconds)
        return whole(*arguments)

    def slowly_written(self):
        time.sleep(seconds if rank == 0 else 0)
        written(self)

    checkpoint.publish, checkpoint.HashedFiles.written = slowly, slowly_written


def stuck_loader(rank: int, *, victim: int, batch: int) -> None:
    """The data of `victim` never arrive from that micro-batch on."""
    from pgdpo.data import prepared

    whole, count = prepared.collate, iter(range(1 << 30))

    def sticking(items):
        if rank == victim and next(count) >= batch:
            time.sleep(3600)
        return whole(items)

    prepared.collate = sticking


def fail_in_save(rank: int, *, victim: int, phase: str) -> None:
    """An exception on one rank in a phase of its second save: a write, a gathering, the renaming, ..."""
    import importlib

    module, name, calls = PHASES[phase]
    owner = importlib.import_module(module)
    *parents, name = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    whole, count = getattr(owner, name), iter(range(1 << 30))

    def failing(*arguments, **options):
        if rank == victim and next(count) == calls:
            raise ValueError(f"injected while {phase}")
        return whole(*arguments, **options)

    setattr(owner, name, failing)


PHASES = {  # module, function, how often a save calls it
    "making the folder": ("pgdpo.checkpoints.checkpoint", "temporary_folder", 1),
    "gathering": ("pgdpo.checkpoints.optimizer_state", "weights", 1),
    "writing": ("pgdpo.checkpoints.shards", "HashedFiles.written", 2),
    "hashing": ("pgdpo.checkpoints.shards", "HashedFiles.hashes", 1),
    "publishing": ("pgdpo.checkpoints.checkpoint", "publish", 1),
}


def write_samples(rank: int, *, file: str, kill_after: int | None = None) -> None:
    """Write down what each micro-batch is made of; kill both ranks inside one of them."""
    import torch

    from pgdpo.training.step import Step

    step, loss, where, count = Step.take, Step.group_loss, [0, 0], iter(range(1 << 30))

    def stepping(self, loaded):
        where[:] = [self.done, 0]
        return step(self, loaded)

    def writing(self, batch):
        drawn = torch.rand(()).item()
        output = loss(self, batch)
        sample = [batch["ids"], batch["draw"].tolist(), output[-1].tolist(), drawn]
        with open(file, "a") as stream:
            stream.write(json.dumps({"where": [rank, *where], "sample": sample}) + "\n")
        where[1] += 1
        if kill_after is not None and next(count) >= kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return output

    Step.take, Step.group_loss = stepping, writing


def fail_beside_a_save(rank: int, *, victim: int, step: int) -> None:
    """An exception on one rank in a step (from 0), while the hashes of the save before it are still being taken."""
    from pgdpo.checkpoints.checkpoint import Checkpoints
    from pgdpo.training.step import Step

    publish, save, take, saves = Checkpoints._publish, Checkpoints.save, Step.take, []

    def saving(self, *arguments, **options):
        save(self, *arguments, **options)
        saves.append(self._publication)

    def publishing(self, *arguments):
        time.sleep(0.5)
        return publish(self, *arguments)

    def stepping(self, loaded):
        if rank == victim and self.done == step:
            assert not saves[-1].done()
            raise ValueError("injected beside a save")
        return take(self, loaded)

    Checkpoints._publish, Checkpoints.save, Step.take = publishing, saving, stepping


def full_disk(rank: int, *, save: int, publishing: bool = False) -> None:
    """In the `save`-th save (from 0) no file may grow beyond 4 kB: the system refuses the rest of it.

    `publishing`: the disk is full when the manifest is written.
    """
    if publishing:
        return _full_at_publication(save)
    import resource

    from pgdpo.checkpoints.checkpoint import Checkpoints

    whole, count = Checkpoints.save, iter(range(1 << 30))

    def saving(self, *arguments, **options):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if next(count) == save:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            return whole(self, *arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    Checkpoints.save = saving


def _full_at_publication(save: int) -> None:
    from pgdpo.checkpoints import checkpoint

    whole, count = checkpoint.publish, iter(range(1 << 30))

    def publishing(*arguments):
        if next(count) == save:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(*arguments)

    checkpoint.publish = publishing


def record_ids(rank: int, *, file: str) -> None:
    """Append the (step, id, draw) of every pair that this rank trains on."""
    from pgdpo.guards.bad_steps import Guard
    from pgdpo.training.step import Step

    step, see = Step.take, Guard.see
    at = []

    def stepping(self, loaded):
        at[:] = [self.done]
        return step(self, loaded)

    def seeing(self, output, errors, batch):
        rows = zip(batch["ids"], batch["draw"].tolist(), strict=True)
        with open(f"{file}-rank{rank}.jsonl", "a", encoding="utf-8") as log:
            log.writelines(f'[{at[0]}, "{name}", {draw}]\n' for name, draw in rows)
        see(self, output, errors, batch)

    Step.take, Guard.see = stepping, seeing


def scale_loss(rank: int, *, victim: int, step: int, factors: list[float], seen: bool) -> None:
    """One rank's loss is too large by `factors` in a step (from 1), as a model that breaks down gives; `seen`: the
    numbers that the guard looks at are too, else the gradient alone."""
    from pgdpo.guards.bad_steps import Guard
    from pgdpo.training.step import Step

    take, see = Step.take, Guard.see
    at = []

    def stepping(self, loaded):
        at[:] = [self.done + 1]
        return take(self, loaded)

    def seeing(self, output, errors, batch):
        for factor in factors if rank == victim and at == [step] else []:
            output.loss = output.loss * factor
            if seen:
                output.per_group = output.per_group * factor
        see(self, output, errors, batch)

    Step.take, Guard.see = stepping, seeing


def damage_file(rank: int, *, victim: int, step: int, path: str) -> None:
    """One rank flips a bit of a file before it reads the data of a step (from 0), after the checks at the start."""
    from pgdpo.training.step import Step

    take = Step.take

    def stepping(self, loaded):
        if rank == victim and self.done == step:
            with open(path, "r+b") as file:
                file.seek(-1, 2)
                last = file.read(1)[0]
                file.seek(-1, 2)
                file.write(bytes([last ^ 1]))
        return take(self, loaded)

    Step.take = stepping


def note_samples(rank: int, *, file: str, victim: int | None = None, after: int = 0) -> None:
    """Append the jobs of every batch that a rank samples to its file; SIGKILL of `victim` in its batch `after`."""
    from pgdpo.sampling import clips

    whole, count = clips.sample_latents, iter(range(1 << 30))

    def noting(config, family, transformer, data, jobs, device):
        with open(f"{file}-rank{rank}", "a", encoding="utf-8") as log:
            log.write(f"{json.dumps(jobs)}\n")
        if rank == victim and next(count) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(config, family, transformer, data, jobs, device)

    clips.sample_latents = noting


def kill_in_making(rank: int, *, victim: int, after: int) -> None:
    """SIGKILL of one rank before it makes its pair `after` (from 0)."""
    from pgdpo.making import make

    whole, count = make._write, iter(range(1 << 30))

    def writing(*arguments):
        if rank == victim and next(count) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    make._write = writing
