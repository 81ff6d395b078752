"""Numerical faults and damaged pairs: seen by all ranks together, before the optimizer changes anything.

What a micro-batch shows is kept on the device. The optimizer asks once a step, when the gradients are complete and
before it changes a weight: one all-reduce of five numbers settles, the same on every rank, whether it may. Where it
may not, weights, moments and the count of updates stay as they are, DeepSpeed drops the gradients as after any step,
and the learning rate of the next step is that of this one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.checkpoints.events import log_event
from pgdpo.config import Config
from pgdpo.data.bad import check_bad
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.shards import prompt_key
from pgdpo.guards.spikes import LossScale
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.objectives import Objective, ObjectiveOutput, PairInfo
from pgdpo.ranks import agreement
from pgdpo.rows.schema import captions_of
from pgdpo_kernels import GroupErrors, PairErrors

MOST = 0.95  # of a spike's loss: the pairs that make up so much of it are named, the largest first
NAMED = 8  # and no more than so many
MEND = "Look at these clips' latents, or lower train.learning_rate or objective.beta; the last checkpoint is intact"


@dataclass
class Fault:
    """Why a step was not taken."""

    reason: str
    pairs: list[str] = field(default_factory=list)  # ids
    shares: list[float] = field(default_factory=list)  # a spike's: of the global batch's |loss|, as `pairs`

    def __str__(self) -> str:
        if self.shares:
            return f"{self.reason}; pairs: {with_shares(self.pairs, self.shares)}"
        return self.reason + (f" for the pairs {', '.join(self.pairs)}" if self.pairs else "")


def with_shares(pairs: list[str], shares: list[float]) -> str:
    """`0007 (93%), 0002 (4%)`; without shares the ids alone."""
    if not shares:
        return ", ".join(pairs)
    return ", ".join(f"{name} ({share:.0%})" for name, share in zip(pairs, shares, strict=True))


class BadStep(InputError):
    """A step that was not taken ends the run; `details`: what its event says beside the message."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.details = {"pairs": fault.pairs, "shares": fault.shares}


class Guard:
    """One run's guard. On all ranks, call `see_untrained` and `see` for every micro-batch, `settle` after every step,
    and `raise_end` once what it returned is logged."""

    def __init__(
        self,
        config: Config,
        data: PreparedPairs,
        objective: Objective,
        engine: deepspeed.DeepSpeedEngine,
    ) -> None:
        self._train, self._policy, self._run_dir = config.train, config.data.on_bad_data, config.run_dir
        self._data, self._objective, self._engine = data, objective, engine
        self.skipped = 0  # steps that were not taken
        self._in_a_row = 0
        self._scale = LossScale()
        self._end: BadStep | None = None
        self._damaged: dict[str, str] = {}  # pair id -> what is wrong with it
        self._begin_step()
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        step = optimizer.step
        optimizer.step = lambda *args, **options: step(*args, **options) if self._may_step() else None

    def see_untrained(
        self, errors: PairErrors | GroupErrors | Mapping[str, PairErrors | GroupErrors], pairs: PairInfo
    ) -> None:
        """What the objective gives for a micro-batch where the policy is the reference; asked for in the first steps.

        Without a reference there is no such thing: the first steps' own losses stand for it.
        """
        one = next(iter(errors.values())) if isinstance(errors, Mapping) else errors
        reference = one.ref_chosen if isinstance(one, PairErrors) else one.ref
        if not self._scale.known and reference is not None:
            self._untrained.append(self._objective.untrained(errors, pairs))

    def see(self, output: ObjectiveOutput, errors: PairErrors | GroupErrors, batch: dict) -> None:
        """A micro-batch's losses, errors and damaged pairs; nothing waits for the device."""
        finite = output.per_group.isfinite() & _finite(errors)
        self._ids += batch["ids"]
        self._finite.append(finite)
        self._per_pair.append(output.per_group.detach())
        self._found |= dict(damage for damage in batch["damage"] if damage is not None)

    def settle(self, step: int) -> Fault | None:
        """What kept the step (from 0) from being taken, logged; None if it was.

        Raises InputError on all ranks for too much damaged data. Where the fault itself ends the run, `raise_end` does,
        so that the step's metrics can be written before.
        """
        if not self._asked:  # DeepSpeed met gradients that are not finite, and left the optimizer out
            self._judge(gradients_finite=False)
        fault, damaged = self._fault, self._newly_damaged
        self._begin_step()
        for name, reason in damaged.items():
            say(f": {reason}", first=f"step {step + 1}: skipped a damaged pair")
            log_event(self._run_dir, step + 1, "damaged pair", reason, pairs=[name])
        try:
            check_bad(self._damaged, len(self._data), self._policy, f"step {step + 1}: {self._data.folder}")
        except InputError as error:
            raise InputError(f"step {step + 1}: {error} (nothing was updated)") from error
        if fault is None:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        self.skipped += 1
        log_event(
            self._run_dir, step + 1, "step not taken", str(fault), pairs=fault.pairs, shares=fault.shares
        )
        if self._train.on_bad_step == "raise":
            self._end = BadStep(f"step {step + 1}: {fault}: nothing was updated. {MEND}", fault)
        elif self._in_a_row >= self._train.max_bad_steps:
            many = f"{self._in_a_row} steps in a row were not taken (train.max_bad_steps)"
            self._end = BadStep(f"step {step + 1}: {fault}: {many}. {MEND}", fault)
        else:
            say(f": {fault}", first=f"step {step + 1} is not taken")
        return fault

    @property
    def goes_back(self) -> bool:
        """Whether the last step's fault takes the run back to the weights of its newest checkpoint."""
        return self._in_a_row > 0 and self._train.on_bad_step == "rollback" and self._end is None

    def raise_end(self) -> None:
        """Raises BadStep on all ranks where the policy says so: for the fault, or for too many in a row."""
        if self._end is not None:
            raise self._end

    def state_dict(self) -> dict:
        """What a resumed run needs to decide as this one would."""
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            **self._scale.state_dict(),
            "damaged": self._damaged,
        }

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._scale.load_state_dict(state)
        self._damaged = dict(state["damaged"])

    def went_back(self, step: int, state: dict) -> None:
        """The weights are those of an earlier checkpoint with this guard's `state`: its updates are what was done."""
        self.skipped = step - (state["step"] - state["guard"]["skipped"])
        log_event(self._run_dir, step, "went back", f"to the weights of step {state['step']}")

    def _begin_step(self) -> None:
        self._asked, self._fault = False, None
        self._ids: list[str] = []
        self._finite: list[torch.Tensor] = []
        self._per_pair: list[torch.Tensor] = []
        self._untrained: list[torch.Tensor] = []
        self._found: dict[str, str] = {}
        self._newly_damaged: dict[str, str] = {}

    def _may_step(self) -> bool:
        """Asked by the optimizer: once a step or, under ZeRO, for each of its groups of parameters."""
        if not self._asked:
            norm = getattr(self._engine, "unclipped_norm", None)  # ZeRO has looked at its own
            self._judge(gradients_finite=norm is None or math.isfinite(norm))
        return self._fault is None and not (self._newly_damaged and self._policy == "fail")

    def _judge(self, *, gradients_finite: bool) -> None:
        self._asked = True
        finite, per_group = torch.cat(self._finite), torch.cat(self._per_pair)
        untrained = torch.cat(self._untrained) if self._untrained else per_group
        loss = torch.where(finite, per_group, 0).double().sum()
        begun = torch.where(finite & untrained.isfinite(), untrained, 0).double().sum()
        counts = torch.tensor([len(finite), len(self._found)], dtype=torch.float64, device=loss.device)
        sums = torch.cat([counts, torch.stack([loss, begun, (~finite).sum().double()])])
        dist.all_reduce(sums)
        pairs, damaged, total, begun_total, bad = sums.tolist()
        if damaged:
            self._add_damaged()
        if bad:
            self._fault = Fault("the loss is not finite", self._names(finite))
        elif not gradients_finite:
            self._fault = Fault("the gradient's norm is not finite")
        else:
            self._fault = self._spike(total / pairs, begun_total / pairs, per_group)

    def _names(self, finite: torch.Tensor) -> list[str]:
        mine = [name for name, fine in zip(self._ids, finite.tolist(), strict=True) if not fine]
        return sorted({name for names in agreement.gather(mine) for name in names})

    def _add_damaged(self) -> None:
        for found in agreement.gather(self._found):
            self._newly_damaged |= {n: reason for n, reason in found.items() if n not in self._damaged}
        self._damaged |= self._newly_damaged

    def _spike(self, loss: float, untrained: float, per_group: torch.Tensor) -> Fault | None:
        """A loss far above its scale; any other joins those that the next are held against."""
        factor = self._train.spike_factor
        reason = None if factor is None else self._scale.spike(loss, factor)
        if reason is None:
            self._scale.add(loss, untrained)
            return None
        return Fault(reason, *self._shares(per_group))

    def _shares(self, per_group: torch.Tensor) -> tuple[list[str], list[float]]:
        """The pairs that make up most of the global batch's |loss|, and their shares of it; the same on every rank."""
        mine = list(zip(self._ids, per_group.double().abs().tolist(), strict=True))
        sizes: dict[str, float] = defaultdict(float)  # a pair may stand in a batch twice
        for pairs in agreement.gather(mine):
            for name, size in pairs:
                sizes[name] += size
        whole, covered, named = sum(sizes.values()), 0.0, {}
        for name, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMED]:
            if covered >= MOST * whole:
                break
            covered += size
            named[name] = round(size / whole, 4)
        return list(named), list(named.values())


def _finite(errors: PairErrors | GroupErrors) -> torch.Tensor:
    """bool `[B]`: the policy's errors of all samples are."""
    if isinstance(errors, PairErrors):
        return errors.policy_chosen.isfinite().all(1) & errors.policy_rejected.isfinite().all(1)
    return errors.policy.isfinite().all(1).reshape(errors.groups, -1).all(0)


def check_damage(data: PreparedPairs, config: Config) -> None:
    """Raises InputError if the run must not begin with the files that were found damaged; else says what is skipped."""
    if not data.damaged_files:
        return
    bad = {}
    for row in data.rows:
        for entry in _files_of(data, row):
            if entry["file"] in data.damaged_files:
                bad[row["id"]] = data.damaged_files[entry["file"]]
    first = next(iter(data.damaged_files.values()))
    check_bad(bad or {first: first}, len(data), config.data.on_bad_data, str(data.folder))
    for reason in data.damaged_files.values():
        say(f": {reason}", first="its pairs are skipped")


def _files_of(data: PreparedPairs, row: dict) -> list[dict]:
    text, told = data.index["text"], [row["prompt"], *captions_of(row).values()]
    files = [text["files"][text["prompts"][prompt_key(words)][0]] for words in told]
    return [data.index["shards"][row["shard"]], *files]


def sound_pairs(batch: dict, device: torch.device) -> torch.Tensor:
    """bool `[B]`: false where another pair stands in for a damaged one."""
    return torch.tensor([damage is None for damage in batch["damage"]], device=device)


def without_stand_ins(pairs: PairInfo, batch: dict, device: torch.device) -> PairInfo:
    """The same, with weight 0 where another pair stands in for a damaged one: a sound pair's weight stays 1 / batch."""
    if not any(batch["damage"]):
        return pairs
    sound = sound_pairs(batch, device).float()
    return replace(pairs, weight=sound if pairs.weight is None else pairs.weight * sound)
