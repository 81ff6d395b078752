"""Whether beta fits a run: what it is called elsewhere, and what the first steps' logits say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.events import log_event
from pgdpo.messages.console import say
from pgdpo.objectives import Objective, ObjectiveOutput
from pgdpo.objectives.advice import beta_report, saturation_advice

WATCHED_STEPS = 20


def say_beta(objective: Objective, numels: Mapping[str, int]) -> None:
    """This run's beta in the conventions of other trainers; `numels`: elements of one sample's latents, by part.

    Inside one sigmoid a part's weight multiplies beta.
    """
    beta = objective.options.get("beta")
    if beta is None:
        return
    for part, numel in numels.items():
        weight = objective.parts.weight(part) if objective.parts.form == "inside" else 1.0
        of = "" if len(numels) == 1 else f" of {part}" + f", times its weight {weight:g}," * (weight != 1)
        if not weight:
            continue
        say(
            f"beta {beta:g}{of} elsewhere, for the same logit u (D: error of chosen minus rejected, less the "
            f"reference's; {numel:,} elements a sample):"
        )
        for row in beta_report(beta * weight, numel):
            say(f"  {row.beta:<10.4g} {row.formula:<22} {row.trainers}")


def own_logits(output: ObjectiveOutput, streams: Sequence[str]) -> torch.Tensor:
    """`[B]`, or where parts have sigmoids of their own those of each, NaN where one is missing: ranks have equally
    many."""
    if not output.parts:
        return output.logits
    missing = torch.full_like(output.logits, torch.nan)
    return torch.cat([output.parts[part].logits if part in output.parts else missing for part in streams])


class BetaWatch:
    """Looks at |logit| of all pairs of the first steps, on all ranks, and warns once if beta doesn't fit; of samples of
    several parts in one sigmoid it says how much of the logit each part makes.

    `process_group`: ranks that hold all pairs once.
    """

    def __init__(self, objective: Objective, run_dir: Path, process_group: dist.ProcessGroup) -> None:
        self._objective, self._watches = objective, "beta" in objective.options
        self._run_dir = run_dir
        self._process_group = process_group
        self._seen: list[torch.Tensor] = []
        self._parts: dict[str, torch.Tensor] = {}  # sums of |weight times margin|

    def add(self, logits: torch.Tensor, margins: Mapping[str, torch.Tensor] | None = None) -> None:
        """`logits` of a micro-batch, as `own_logits` gives them; `margins` `[B]` of all parts, 0 where one does not
        count."""
        if not self._watches:
            return
        self._seen.append(logits.detach().abs().float())
        for part, margin in (margins or {}).items():
            own = self._objective.parts.weight(part) * margin.detach().double().abs().sum()
            self._parts[part] = self._parts.get(part, 0) + own

    def report(self, step: int) -> None:
        """Call it after every step (from 1), on all ranks: after the 20th it speaks, then it is done."""
        if step < WATCHED_STEPS or not self._watches:
            return
        if step == WATCHED_STEPS and (warning := self._warning()):
            say(f": {warning}", first="warning")
            log_event(self._run_dir, step, "beta", warning)
        if step == WATCHED_STEPS and self._parts and self._objective.parts.form == "inside":
            self._say_shares()
        self._watches, self._seen, self._parts = False, [], {}

    def _say_shares(self) -> None:
        sums = torch.stack([*self._parts.values()])
        dist.all_reduce(sums, group=self._process_group)
        shares = (sums / sums.sum()).tolist()
        if math.isfinite(sum(shares)):
            said = ", ".join(f"{part} {share:.0%}" for part, share in zip(self._parts, shares, strict=True))
            say(
                f": {said}, by weight times |margin|", first=f"the logit's parts, first {WATCHED_STEPS} steps"
            )

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
