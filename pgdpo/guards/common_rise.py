"""PG-DPO's silent failure: both clips of every pair become likelier, the loss goes to nothing, and nothing is learnt.

Its logit is kappa (r_w - alpha r_l) with alpha near one half while a pair's margin is small. On a model that doesn't
fit the clips yet, fitting them raises both rewards alike, r_w = r_l = r, and the logit is kappa r / 2: it grows with r
though the margin stays 0. A run on random weights came to a loss of 0.014 at an accuracy of 0.46.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.events import log_event, read_events
from pgdpo.messages.console import say
from pgdpo.objectives import Objective, ObjectiveOutput
from pgdpo_kernels import PairErrors

EVENT = "common rise"
WINDOW = 20  # steps that it is judged by
EVERY = 5  # steps between two looks, each one small all-reduce
WON = 1.0  # mean logit above which the loss counts as fallen: ln 2 has become 0.31
BY_MARGIN = 0.1  # share of the mean logit that the margin makes at least, where it is what the loss falls by
APART = 0.8  # accuracy, on pairs that are trained on again and again, from which on they are told apart all the same


class CommonRise:
    """Watches a run of `pg_dpo`, and says once where it fails so. `process_group`: ranks that hold all pairs once."""

    def __init__(self, objective: Objective, run_dir: Path, process_group: dist.ProcessGroup) -> None:
        # Labels per segment may lie both ways within a pair, whose whole clips' margin then says little.
        self._watches = objective.name == "pg_dpo" and "segment_labels" not in objective.needs.pairs
        self._objective, self._run_dir, self._process_group = objective, run_dir, process_group
        self._step: torch.Tensor | float = 0.0
        self._window: deque[torch.Tensor] = deque(maxlen=WINDOW)

    @torch.no_grad()
    def add(self, output: ObjectiveOutput, errors: PairErrors) -> None:
        """A micro-batch. Nothing waits for the device."""
        if not self._watches:
            return
        whole = errors.over_segments()
        chosen, rejected = -whole.excess_chosen[:, 0], -whole.excess_rejected[:, 0]
        margin = chosen - rejected
        explained = 0.5 * self._objective.options["beta"] * output.stats.get("timestep_weight", 1.0) * margin
        accurate = (margin > 0).float() + 0.5 * (margin == 0).float()
        values = (torch.ones_like(margin), output.logits, explained, accurate, chosen, rejected)
        self._step = self._step + torch.stack(values).double().sum(1)

    def report(self, step: int) -> None:
        """Call it after every step (from 1), on all ranks."""
        if not self._watches:
            return
        self._window.append(self._step)
        self._step = 0.0
        if len(self._window) < WINDOW or step % EVERY:
            return
        sums = torch.stack(list(self._window)).sum(0)
        dist.all_reduce(sums, group=self._process_group)
        count, *totals = sums.tolist()
        warning = _warning(count, *(total / count for total in totals))
        if warning is None:
            return
        self._watches = False
        if all(row["event"] != EVENT for row in read_events(self._run_dir)):  # a resumed run may have said it
            say(f": {warning}", first="warning")
            log_event(self._run_dir, step, EVENT, warning)


def _warning(
    pairs: float, logit: float, explained: float, accuracy: float, chosen: float, rejected: float
) -> str | None:
    """Of means over `pairs`, `explained`: kappa times the margin; None where they show no such failure."""
    if not (logit > WON and explained < BY_MARGIN * logit and accuracy < APART and min(chosen, rejected) > 0):
        return None
    return (
        f"last {WINDOW} steps, {pairs:.0f} pairs: both clips of a pair become likelier and are not told apart: mean "
        f"logit {logit:.2g}, of which the margin makes {explained:.2g}; accuracy {accuracy:.0%}; rewards "
        f"{chosen:+.3g} and {rejected:+.3g}. PG-DPO's loss falls by that, with alpha near one half, and nothing is "
        "learnt of the labels. The model doesn't fit these clips yet: train objective `sft` on them first and start "
        "from it (model.adapter.init, model.transformer), or set objective.ars=none, which compares the two as DPO "
        "does. Another ars_k, or ipr_form `switch`, does not mend it"
    )
