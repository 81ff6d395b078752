"""A run and its checkpoints: where it begins, what is saved of it, where it goes back to, how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from pgdpo.checkpoints.checkpoint import Checkpoints
from pgdpo.checkpoints.events import log_event
from pgdpo.checkpoints.published import checkpoints_of, read_state, step_of
from pgdpo.checkpoints.resume import check_resume, described, explain_run, remove_run, set_aside
from pgdpo.config import PARTS, Config
from pgdpo.guards.watch import Watch
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError, Stopped
from pgdpo.ranks import agreement
from pgdpo.training.step import Step


class Saves:
    """Every method is called by all ranks. `identity`: of `run_identity`."""

    def __init__(self, config: Config, step: Step, identity: dict, watch: Watch) -> None:
        self._config, self._step, self._identity, self._watch = config, step, identity, watch
        train = config.train
        best = train.keep_best if config.evaluate.every is not None else None
        self._checkpoints = Checkpoints(
            config.run_dir, keep=train.keep_checkpoints, every=train.keep_every, best=best
        )

    def begin(
        self, *, resume: bool, restart: bool, step: int | None, fallback: bool, allow_change: Sequence[str]
    ) -> None:
        """Load the newest valid checkpoint if asked to, as `Trainer.train` says; `resumed`: its configuration.

        Raises InputError instead of training over another run.
        """
        run_dir = self._config.run_dir
        self._watch.at("starting before", 1)
        if any(checkpoints_of(run_dir / part) for part in PARTS):
            raise InputError(f"{run_dir}: holds a run of both experts: give this run another `name`")
        if restart and dist.get_rank() == 0:
            remove_run(run_dir)
        agreement.meet()
        last = self._checkpoints.newest(fallback=fallback, step=step)
        if last is not None and not resume:
            raise InputError(
                f"{run_dir}: holds checkpoints of an earlier run: go on from the last one with --resume, remove it "
                "with --restart, or give this run another `name`"
            )
        if last is None and checkpoints_of(run_dir):
            raise InputError(
                f"{run_dir / 'checkpoints'}: none of its checkpoints is whole: bring one back, or begin anew with "
                "--restart"
            )
        if last is not None:
            check_resume(last, read_state(last), self._config, self._identity, allow_change)
            state = self._load(last)
            self._step.guard.load_state_dict(state["guard"])
            self._step.done, self.resumed = state["step"], state["config"]
            self._leave_behind(state["step"], checkpoints=step is not None)

    def explain(self) -> None:
        """Let the run's folder say what the run is, before its next step."""
        explain_run(self._config, self._identity, done=self._step.done)

    def save(self) -> None:
        """A checkpoint of the steps that are done."""
        step = self._step
        self._watch.at("saving", step.done)
        state = step.state_dict() | described(self._config, self._identity)
        self._checkpoints.save(step.policy.engine, step.done, state, extra=step.reference.state)

    def published(self) -> Path | None:
        """Wait for what is being published. Returns the newest checkpoint, None where the last one was skipped."""
        self._watch.at("publishing", self._step.done)
        return self._checkpoints.finish()

    def go_back(self) -> None:
        """Weights, optimizer, objective and reference of the newest checkpoint, where there is one; the data go on."""
        last = self._checkpoints.newest()
        if last is not None:
            self._step.guard.went_back(self._step.done, self._load(last))

    def stopped(self, stop: Stopped) -> Stopped:
        """Save what is not saved yet. Returns the same stop, which says how to go on."""
        done, last = self._step.done, self.published()
        if done > _steps_of(last):
            self.save()
            last = self.published()
        log_event(self._config.run_dir, done, "stopped", f"{stop}; newest checkpoint: {last}")
        unsaved = "" if done == _steps_of(last) else ", which found no room to be saved"
        return Stopped(f"{stop} after step {done}{unsaved}; go on with --resume", stop.code)

    def finished(self, last: Path | None, until: int) -> Path:
        """Say that the run is at its end, or at that of an expert's turn, `until`. Returns its last checkpoint; raises
        InputError where that found no room."""
        run_dir, ended = self._config.run_dir, self._step.steering.ended
        if last is None:
            raise InputError(f"{run_dir}: no room for the last checkpoint: make room and --resume")
        if ended is None and until < self._config.train.steps:
            log_event(
                run_dir, self._step.done, "stopped", f"the other expert's turn; newest checkpoint: {last}"
            )
            return last
        at_its_end = ended is None or self._step.done >= self._config.train.steps
        early = "" if at_its_end else f"ended by train.steer.stop: {ended}; "
        log_event(run_dir, self._step.done, "finished", f"{early}last checkpoint: {last}")
        if early:
            say(f"step {self._step.done}: {early}to go on: --resume --allow-change train.steer")
        say(f"trained -> {last}; metrics: {run_dir / 'metrics.jsonl'}")
        return last

    def close(self) -> None:
        """As `Checkpoints.close`."""
        self._checkpoints.close()

    def _load(self, path: Path) -> dict:
        """Put a checkpoint into engine, objective and reference. Returns its state."""
        state, others = self._checkpoints.load(self._step.policy.engine, path)
        self._step.load_objective(state)
        self._step.reference.load_state(others)
        return state

    def _leave_behind(self, done: int, *, checkpoints: bool) -> None:
        """What came after an earlier step that a run goes on from is put out of the way, and not lost."""
        if dist.get_rank() == 0:
            # Damaged ones that were passed over are removed behind the next valid ones.
            aside = set_aside(self._config.run_dir, done, checkpoints=checkpoints)
            if aside is not None:
                say(f" -> {aside}", first=f"what the run has of the steps after {done}")
                told = f"to step {done}; what came after it: {aside.name}"
                log_event(self._config.run_dir, done, "went back", told)
        agreement.meet()


def _steps_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else step_of(checkpoint)
