"""Numerical faults and damaged pairs: seen by all ranks together, before the optimizer changes anything.

What a micro-batch shows is kept on the device. The optimizer asks once a step, when the gradients are complete and
before it changes a weight: one all-reduce of four numbers settles, the same on every rank, whether it may. Where it
may not, weights, moments and the count of updates stay as they are, DeepSpeed drops the gradients as after any step,
and the learning rate of the next step is that of this one.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field, replace

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.console import say
from pgdpo.data.bad import check_bad
from pgdpo.data.prepare import prompt_key
from pgdpo.data.prepared import PreparedPairs
from pgdpo.errors import InputError
from pgdpo.objectives import Objective, ObjectiveOutput, PairInfo
from pgdpo.settings import Config
from pgdpo.training import agreement
from pgdpo.training.events import log_event
from pgdpo_kernels import PairErrors

WINDOW = 100  # steps whose losses a spike is held against
FIRST = 10  # steps before the first can be seen
LOWEST = (
    0.1  # of the first losses' median: a loss that fell further is no scale, one hard pair would be a spike
)
MEND = "Look at these clips' latents, or lower train.learning_rate or objective.beta; the last checkpoint is intact"


@dataclass
class Fault:
    """Why a step was not taken."""

    reason: str
    pairs: list[str] = field(default_factory=list)  # ids

    def __str__(self) -> str:
        return self.reason + (f" for the pairs {', '.join(self.pairs)}" if self.pairs else "")


class Guard:
    """One run's guard. Call `see` for every micro-batch and `settle` after every step, on all ranks."""

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
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._floor: float | None = None
        self._damaged: dict[str, str] = {}  # pair id -> what is wrong with it
        self._begin_step()
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        step = optimizer.step
        optimizer.step = lambda *args, **options: step(*args, **options) if self._may_step() else None

    def see(self, output: ObjectiveOutput, errors: PairErrors, batch: dict) -> None:
        """A micro-batch's losses, errors and damaged pairs; nothing waits for the device."""
        finite = (
            output.per_pair.isfinite()
            & errors.policy_chosen.isfinite().all(1)
            & errors.policy_rejected.isfinite().all(1)
        )
        self._ids += batch["ids"]
        self._finite.append(finite)
        self._per_pair.append(output.per_pair.detach())
        self._found |= dict(damage for damage in batch["damage"] if damage is not None)

    def settle(self, step: int) -> Fault | None:
        """What kept the step (from 0) from being taken, logged; None if it was.

        Raises InputError on all ranks where the policy says so: for the fault, for too many in a row, for damaged data.
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
        if self._train.on_bad_step == "raise":
            raise InputError(f"step {step + 1}: {fault}: nothing was updated. {MEND}")
        log_event(self._run_dir, step + 1, "step not taken", str(fault), pairs=fault.pairs)
        if self._in_a_row >= self._train.max_bad_steps:
            raise InputError(
                f"step {step + 1}: {fault}: {self._in_a_row} steps in a row were not taken "
                f"(train.max_bad_steps). {MEND}"
            )
        say(f": {fault}", first=f"step {step + 1} is not taken")
        return fault

    def state_dict(self) -> dict:
        """What a resumed run needs to decide as this one would."""
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "losses": list(self._losses),
            "floor": self._floor,
            "damaged": self._damaged,
        }

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._floor, self._damaged = state["floor"], dict(state["damaged"])

    def went_back(self, step: int, state: dict) -> None:
        """The weights are those of an earlier checkpoint with this guard's `state`: its updates are what was done."""
        self.skipped = step - (state["step"] - state["guard"]["skipped"])
        log_event(self._run_dir, step, "went back", f"to the weights of step {state['step']}")

    def _begin_step(self) -> None:
        self._asked, self._fault = False, None
        self._ids: list[str] = []
        self._finite: list[torch.Tensor] = []
        self._per_pair: list[torch.Tensor] = []
        self._found: dict[str, str] = {}
        self._newly_damaged: dict[str, str] = {}
        self._objective_state = dict(self._objective.state)

    def _may_step(self) -> bool:
        """Asked by the optimizer: once a step or, under ZeRO, for each of its groups of parameters."""
        if not self._asked:
            norm = getattr(self._engine, "unclipped_norm", None)  # ZeRO has looked at its own
            self._judge(gradients_finite=norm is None or math.isfinite(norm))
        return self._fault is None and not (self._newly_damaged and self._policy == "fail")

    def _judge(self, *, gradients_finite: bool) -> None:
        self._asked = True
        finite, per_pair = torch.cat(self._finite), torch.cat(self._per_pair)
        loss = torch.where(finite, per_pair, 0).double().sum()
        counts = torch.tensor([len(finite), len(self._found)], dtype=torch.float64, device=loss.device)
        sums = torch.cat([counts, torch.stack([loss, (~finite).sum().double()])])
        dist.all_reduce(sums)
        pairs, damaged, total, bad = sums.tolist()
        if damaged:
            self._add_damaged()
        if bad:
            self._fault = Fault("the loss is not finite", self._names(finite))
        elif not gradients_finite:
            self._fault = Fault("the gradient's norm is not finite")
        else:
            self._fault = self._spike(total / pairs)
        if self._fault is not None:
            self._objective.state = self._objective_state

    def _names(self, finite: torch.Tensor) -> list[str]:
        mine = [name for name, fine in zip(self._ids, finite.tolist(), strict=True) if not fine]
        return sorted({name for names in agreement.gather(mine) for name in names})

    def _add_damaged(self) -> None:
        for found in agreement.gather(self._found):
            self._newly_damaged |= {n: reason for n, reason in found.items() if n not in self._damaged}
        self._damaged |= self._newly_damaged

    def _spike(self, loss: float) -> Fault | None:
        """A loss far above the running median; any other joins those that the next are held against."""
        factor = self._train.spike_factor
        if factor is not None and self._floor is not None:
            level = max(statistics.median(self._losses), self._floor)
            if 0 < level < abs(loss) / factor:  # a median of 0 says nothing: saturated losses underflow
                return Fault(
                    f"the loss {loss:.4g} is {abs(loss) / level:.0f} times that of the steps before "
                    f"({level:.4g}; train.spike_factor {factor:g})"
                )
        self._losses.append(abs(loss))
        if self._floor is None and len(self._losses) == FIRST:
            self._floor = LOWEST * statistics.median(self._losses)
        return None


def agree_on_files(data: PreparedPairs, config: Config) -> None:
    """Share what each rank found of damaged files at the start. Raises InputError on all if the run must not begin."""
    for found in agreement.gather(data.damaged_files):
        data.damaged_files |= found
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
    text = data.index["text"]
    return [data.index["shards"][row["shard"]], text["files"][text["prompts"][prompt_key(row["prompt"])][0]]]


def sound_pairs(batch: dict, device: torch.device) -> torch.Tensor:
    """bool `[B]`: false where another pair stands in for a damaged one."""
    return torch.tensor([damage is None for damage in batch["damage"]], device=device)


def without_stand_ins(pairs: PairInfo, batch: dict, device: torch.device) -> PairInfo:
    """The same, with weight 0 where another pair stands in for a damaged one: a sound pair's weight stays 1 / batch."""
    if not any(batch["damage"]):
        return pairs
    sound = sound_pairs(batch, device).float()
    return replace(pairs, weight=sound if pairs.weight is None else pairs.weight * sound)
