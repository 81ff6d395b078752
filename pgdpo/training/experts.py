"""`model.expert: both`: two experts, trained by one command one after the other, or by turns.

Each is a run of its own, in a folder of the run's (`Config.parts`). A turn is a trainer of its own, which goes on from
the checkpoint of the turn before and is let go of before the next one opens: the device holds one expert at a time, and
what is trained is what two runs would train, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgdpo.checkpoints.checkpoint import Checkpoints
from pgdpo.checkpoints.events import failure_logged, log_event
from pgdpo.checkpoints.identity import run_identity
from pgdpo.checkpoints.published import checkpoints_of, read_state, step_of
from pgdpo.checkpoints.resume import explain_run, refuse_changes, remove_run
from pgdpo.config import Config
from pgdpo.engine.policy import start_ranks
from pgdpo.files.atomic import hold
from pgdpo.messages.console import is_main_rank, say
from pgdpo.messages.errors import InputError, Stopped
from pgdpo.models import open_family
from pgdpo.models.weights.held import free_memory
from pgdpo.ranks import agreement
from pgdpo.training.trainer import Start, Trainer, Turn


def train_experts(
    config: Config,
    *,
    resume: bool = False,
    restart: bool = False,
    fallback: bool = True,
    allow_change: Sequence[str] = (),
) -> list[Path]:
    """Train both experts to the configured number of steps; all ranks call it. Returns their last checkpoints.

    The keywords as `Trainer.train` has them. What may be refused of either is, before a weight is loaded or a file
    changed: raises as `Start`, and InputError where another command is at work in the run's folder.
    """
    open_family(config.model)
    start_ranks(config, clips=config.evaluate.shows_clips)  # with the weights of both on every node
    with contextlib.ExitStack() as stack:
        agreement.on_main(lambda: _hold(config.run_dir, stack))
        _refuse_others(config)
        if not resume and not restart:
            _refuse_earlier(config)
        parts = [_Part(part, other) for part, other in zip(config.parts, config.parts[::-1], strict=True)]
        identities = {part.config.expert: part.open(restart, fallback, allow_change) for part in parts}
        if restart and is_main_rank():
            for folder in (config.run_dir, *(part.config.run_dir for part in parts)):
                remove_run(folder)
        agreement.meet()
        explain_run(config, {"experts": identities}, done=sum(part.done for part in parts))
        with failure_logged(config.run_dir, lambda: _saved(parts)):
            _take_turns(config, parts, fallback=fallback, allow_change=allow_change)
    say(f"both experts trained -> {config.run_dir}")
    return [part.last for part in parts]


def turns(steps: int, every: int | None) -> list[tuple[int, int]]:
    """(which of the two experts trains, up to which step), in their order; `every`: steps of a turn, None: all."""
    ends = [steps] if every is None else [*range(every, steps, every), steps]
    return [(expert, end) for end in ends for expert in (0, 1)]


@dataclass
class _Part:
    """One expert's run, with what it has done. `other`: the configuration of the other one's."""

    config: Config
    other: Config
    last: Path | None = None  # its newest checkpoint
    ended: bool = field(default=False)  # before its last step, by train.steer.stop

    @property
    def done(self) -> int:
        return 0 if self.last is None else step_of(self.last)

    def open(self, restart: bool, fallback: bool, allow_change: Sequence[str]) -> dict:
        """Find its newest checkpoint, unless it is removed. Returns its identity; raises as `train_experts`."""
        start = Start(self.config, self.other)
        identity = run_identity(start.config, start.task.pairs)
        if not restart:
            self.last = Checkpoints(self.config.run_dir, keep=1).newest(fallback=fallback)
        if self.last is not None:
            state = read_state(self.last)
            refuse_changes(self.last, state, start.config, identity, allow_change)
            self.ended = state["steering"].get("ended") is not None
        return identity

    def train(self, turn: Turn, **how: object) -> None:
        trainer = Trainer(self.config, other=self.other)
        self.last = trainer.train(resume=True, turn=turn, **how)
        trainer.release()
        self.ended = self.done < turn.until


def _take_turns(config: Config, parts: list[_Part], **how: object) -> None:
    try:
        for number, until in turns(config.train.steps, config.train.expert_turns):
            part, other = parts[number], parts[1 - number]
            if part.done < until and not part.ended:
                part.train(Turn(until, other.done), **how)
                free_memory()  # engine and model hold each other
    except Stopped as stop:
        told = f"{part.config.expert}: {stop}"
        log_event(config.run_dir, _saved(parts), "stopped", told)
        raise Stopped(told, stop.code) from stop
    log_event(config.run_dir, sum(part.done for part in parts), "finished", "both experts")


def _saved(parts: list[_Part]) -> int:
    """Steps of both, with those of a turn that was broken off."""
    newest = [checkpoints_of(part.config.run_dir)[-1:] for part in parts]
    return sum(step_of(path) for paths in newest for path in paths)


def _hold(folder: Path, stack: contextlib.ExitStack) -> None:
    stack.enter_context(hold(folder))


def _refuse_others(config: Config) -> None:
    """Raises InputError for a folder that holds a run of one expert."""
    if agreement.from_main(bool(checkpoints_of(config.run_dir))):
        raise InputError(
            f"{config.run_dir}: holds checkpoints of a run of one model, and model.expert is `both`: give this run "
            "another `name`"
        )


def _refuse_earlier(config: Config) -> None:
    if agreement.from_main(any(checkpoints_of(part.run_dir) for part in config.parts)):
        raise InputError(
            f"{config.run_dir}: holds checkpoints of an earlier run: go on from the last ones with --resume, remove "
            "them with --restart, or give this run another `name`"
        )
