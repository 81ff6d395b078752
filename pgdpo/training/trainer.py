"""A training run: open data, open model, open reference, run."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from pgdpo.checkpoints.events import failure_logged, log_event
from pgdpo.checkpoints.identity import run_identity
from pgdpo.config import Config
from pgdpo.data.visits.batches import StepBatches
from pgdpo.data.visits.loading import load_batches
from pgdpo.diffusion.streams import VIDEO
from pgdpo.engine.deterministic import make_deterministic
from pgdpo.engine.engine import build_operators
from pgdpo.engine.policy import open_policy, open_ranks
from pgdpo.engine.zero.traces import let_go
from pgdpo.guards.beta import say_beta
from pgdpo.guards.watch import Watch
from pgdpo.messages.console import ProgressTask, progress_bar, say
from pgdpo.messages.errors import InputError, Stopped
from pgdpo.models import open_family
from pgdpo.objectives.spec import AUTO
from pgdpo.planning.start import check_memory
from pgdpo.reference import Live
from pgdpo.rows.dimensions import label_notes
from pgdpo.training.costs import Costs
from pgdpo.training.held_out.held_out import HeldOut
from pgdpo.training.metrics import note
from pgdpo.training.opening import require_images
from pgdpo.training.references import build_reference, open_cached
from pgdpo.training.saves import Saves
from pgdpo.training.steering.fitting_beta import Fit, fitting_beta
from pgdpo.training.step import Step
from pgdpo.training.task.checks import check_shapes
from pgdpo.training.task.task import Task
from pgdpo.training.trackers import Trackers, check_trackers


class Start:
    """All of a run that may be refused before any weight is loaded.

    `other`: of two experts that train in one run, the part that is the other one's, which clips are sampled with.
    Raises InputError for anything that a user can mend, MachineError for what the machine lacks.
    """

    def __init__(self, config: Config, other: Config | None = None) -> None:
        if config.expert == "both":
            raise InputError(
                "model.expert is `both`, and a Trainer trains one: training.experts.train_experts trains both"
            )
        # What a run settles before its first step, `objective.beta` and `evaluate.every_pairs`, is its own.
        config = config.model_copy(update={"objective": dict(config.objective)})
        check_trackers(config)
        ranks = self.ranks = open_ranks(config, clips=config.evaluate.shows_clips)
        make_deterministic(config.train.deterministic)
        build_operators(config.train)
        self.task = Task(config, ranks)
        family = self.family = open_family(config.model)
        pairs = self.task.pairs
        require_images(pairs, family)
        runs = self.task.objective.needs_reference and not self.task.cached
        self.held_out = HeldOut(config, family, pairs, ranks, reference_runs=runs, other=other)
        config = self.config = self.held_out.config
        self.cached = open_cached(config, family, pairs, ranks.device) if self.task.cached else None
        check_shapes(config, family, pairs)
        check_memory(config, pairs.stream_shapes, pairs.group_sizes, ranks.device, dist.get_world_size())


@dataclass(frozen=True)
class Turn:
    """Of two experts that train in one run: up to which step this one trains now, and the other one's done."""

    until: int
    others_done: int = 0


class Trainer:
    """One rank's part of a training run.

        last_checkpoint = Trainer(load_config("quickstart.yaml")).train(resume=True)

    Building it loads data and model and raises InputError for anything that a user can mend. `other` as `Start` has it.
    """

    def __init__(self, config: Config, *, other: Config | None = None) -> None:
        start = Start(config, other)
        config = self.config = start.config
        self.task, self.held_out = start.task, start.held_out
        self.watch = Watch(config.run_dir, config.train.watchdog_seconds)
        largest = {"group_size": max(*self.task.pairs.group_sizes, self.held_out.group_size)}
        self.policy = open_policy(config, start.family, start.ranks, **largest)
        reference = start.cached or build_reference(config, self.policy, self.task.objective, **largest)
        self.step = Step(config, self.task, self.policy, reference, self.watch)
        self.saves = Saves(config, self.step, run_identity(config, self.task.pairs), self.watch)

    def train(
        self,
        *,
        resume: bool = False,
        restart: bool = False,
        step: int | None = None,
        fallback: bool = True,
        allow_change: Sequence[str] = (),
        turn: Turn | None = None,
    ) -> Path:
        """Train to the configured number of steps, or to the end of a `turn`. Returns the last checkpoint.

        `resume`: go on from the newest valid checkpoint, or from that of `step`, and set aside what came after it;
        `restart`: remove an earlier run of this name first; `fallback`: pass damaged checkpoints over; `allow_change`:
        keys that a resumed run may have changed although it is no longer one run then.
        """
        with self.watch:
            self.saves.begin(
                resume=resume, restart=restart, step=step, fallback=fallback, allow_change=allow_change
            )
            fit = self._settle_beta()
            self.saves.explain()
            if fit is not None:
                say(f"objective.beta auto: {fit}")
                log_event(self.config.run_dir, 0, "beta", f"auto: {fit}")
            with failure_logged(self.config.run_dir, lambda: self.watch.step):
                return self._train_on(turn)

    def release(self) -> None:
        """Let go of weights and optimizer; it trains no more."""
        let_go(self.policy.engine)

    def _settle_beta(self) -> Fit | None:
        """Put a number in the place of `objective.beta: auto`: a resumed run's own, else the one that fits."""
        options, objective = self.step.objective.options, self.config.objective
        if objective.get("beta") != AUTO:
            return None
        fit = fitting_beta(self.step, self.task) if not self.step.done else None
        objective["beta"] = self.saves.resumed["objective"]["beta"] if fit is None else fit.beta
        if options["beta"] == AUTO:  # else a resumed run's steering has set it
            options["beta"] = objective["beta"]
        return fit

    def _train_on(self, turn: Turn | None) -> Path:
        """Train from the steps that are done to the last one. Returns the last checkpoint."""
        until = self.config.train.steps if turn is None else turn.until
        done, pairs = self.step.done, self.task.pairs
        looked = self.step.steering.looked if done else -1
        batches = self.task.batches(range(done, self.config.train.steps))
        with (
            contextlib.closing(Trackers(self.config, start=done, looked=looked)) as log,
            contextlib.closing(self.saves),
            contextlib.closing(load_batches(pairs, batches, workers=self.config.data.workers)) as loaded,
        ):
            self._say_start()
            try:
                with self._bar(turn) as bar:
                    self._loop(batches, loaded, log, until, bar)
                last = self.saves.published()
            except Stopped as stop:
                traceback.clear_frames(stop.__traceback__)  # they hold activations
                raise self.saves.stopped(stop) from stop
        return self.saves.finished(last, until)

    def _bar(self, turn: Turn | None) -> AbstractContextManager[ProgressTask]:
        """Of the steps of this run, or of both experts'."""
        config, step, name = self.config, self.step, f"train {self.step.objective.name}"
        if turn is None:
            return progress_bar(name, total=config.train.steps, completed=step.done)
        done = turn.others_done + step.done
        return progress_bar(f"{name}, {config.expert}", total=2 * config.train.steps, completed=done)

    def _loop(
        self, batches: StepBatches, loaded: Iterator[dict], log: Trackers, until: int, bar: ProgressTask
    ) -> None:
        train, step = self.config.train, self.step
        runs = isinstance(step.reference, Live)
        costs = Costs(self.config, self.policy, self.task.pairs, reference_runs=runs)
        started = time.perf_counter()
        self.held_out.begin(self.policy, step.reference, step.objective, step.done, log, self.watch.signals)
        if step.done:  # a stop may have broken it off
            self._look(log)
        while step.done < until and step.steering.ended is None:
            buckets, began = batches.buckets(step.done), time.perf_counter()
            values = step.take(loaded)
            if step.guard.goes_back:
                self.saves.go_back()
            log.log(step.done, values | costs.of(buckets, time.perf_counter() - began))
            step.guard.raise_end()
            bar.advance(note=note(values, self.held_out.newest))
            step.beta_watch.report(step.done)
            step.common_rise.report(step.done)
            self._look(log)
            last = step.done == until or step.steering.ended is not None
            if last or step.done % train.checkpoint_every == 0:
                self.saves.save()
        self.held_out.say_share(time.perf_counter() - started)

    def _look(self, log: Trackers) -> None:
        """At held-out data, where the steps that are done are some that it is looked at after."""
        step = self.step
        figures = self.held_out.look(step.done, self.policy.engine.module, log, self.watch.signals)
        if figures is not None:
            step.steering.look(step.done, figures)

    def _say_start(self) -> None:
        done, pairs, objective = self.step.done, self.task.pairs, self.task.objective
        sizes = [
            (getattr(p, "ds_numel", p.numel()), p.requires_grad)
            for p in self.policy.engine.module.parameters()
        ]
        trained = sum(size for size, trains in sizes if trains)
        steps, batch = self.config.train.steps, self.config.train.global_batch_groups
        say(
            f"{objective.name}: {len(pairs)} {pairs.sized}, {steps} steps of {batch} {pairs.kind}s "
            f"on {dist.get_world_size()} rank(s); "
            f"{trained:,} of {sum(size for size, _ in sizes):,} parameters train"
            + (f"; resuming after step {done}" if done else "")
        )
        notes = [
            *objective.notes(pairs.rows[0]),
            *label_notes(pairs.rows, self.policy.family.streams, objective.parts.weights),
        ]
        for line in (*pairs.described_shares(steps * batch), *notes):
            say(line)
        for kept in pairs.curation:
            say(f"data.select {kept}")
            log_event(self.config.run_dir, done, "selection", str(kept))
        if objective.needs.data and objective.needs.noisy == "drawn":
            say(f"{objective.name} expects {objective.needs.data}; this is not checked")
        say_beta(objective, self._numels())

    def _numels(self) -> dict[str, int]:
        """Elements of the largest sample's latents, by stream."""
        family = self.policy.family
        shapes = [family.stream_shapes(*size) for size in self.config.data.sizes]
        found = {name: max(math.prod(each[name]) for each in shapes) for name in family.streams}
        return found | {VIDEO: math.prod(self.task.pairs.latent_shape)}
