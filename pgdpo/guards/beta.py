"""Whether beta fits a run: what it is called elsewhere, and what the first steps' logits say of it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.events import log_event
from pgdpo.messages.console import say
from pgdpo.objectives import Objective
from pgdpo.objectives.advice import beta_report, saturation_advice

WATCHED_STEPS = 20


def say_beta(objective: Objective, numel: int) -> None:
    """This run's beta in the conventions of other trainers; `numel`: elements of one sample's latents."""
    beta = objective.options.get("beta")
    if beta is None:
        return
    say(
        f"beta {beta:g} elsewhere, for the same logit u (D: error of chosen minus rejected, less the reference's; "
        f"{numel:,} elements a sample):"
    )
    for row in beta_report(beta, numel):
        say(f"  {row.beta:<10.4g} {row.formula:<22} {row.trainers}")


class BetaWatch:
    """Looks at |logit| of all pairs of the first steps, on all ranks, and warns once if beta doesn't fit.

    `process_group`: ranks that hold all pairs once.
    """

    def __init__(self, objective: Objective, run_dir: Path, process_group: dist.ProcessGroup) -> None:
        self._objective, self._watches = objective, "beta" in objective.options
        self._run_dir = run_dir
        self._process_group = process_group
        self._seen: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor) -> None:
        """`logits` `[B]` of a micro-batch."""
        if self._watches:
            self._seen.append(logits.detach().abs().float())

    def report(self, step: int) -> None:
        """Call it after every step (from 1), on all ranks: after the 20th it speaks, then it is done."""
        if step < WATCHED_STEPS or not self._watches:
            return
        if step == WATCHED_STEPS and (warning := self._warning()):
            say(f": {warning}", first="warning")
            log_event(self._run_dir, step, "beta", warning)
        self._watches, self._seen = False, []

    def _warning(self) -> str | None:
        seen = torch.cat(self._seen)
        everywhere = [torch.empty_like(seen) for _ in range(dist.get_world_size(self._process_group))]
        dist.all_gather(everywhere, seen, group=self._process_group)
        logits = torch.cat(everywhere)
        logits = logits[logits.isfinite()].tolist()
        advice = "every logit is 0: the policy still equals its reference"
        if any(logits):
            advice = saturation_advice(logits, self._objective.options["beta"])
        return advice and f"first {WATCHED_STEPS} steps, {len(logits)} pairs: {advice}"
