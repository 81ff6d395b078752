"""The named objectives and their numbers, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from ..checks import check_number
from ..types import PairErrors

Custom = Callable[[PairErrors], torch.Tensor]
Objective = str | Custom

OBJECTIVES = ("dpo", "pg_dpo", "ipo", "hinge")
IPR_FORMS = ("bt", "hinge", "sft", "switch")
SAFEGUARD_SCOPES = ("pair", "batch")
REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Preference:
    """The objective and its numbers, checked. See `preference_loss` for their meaning."""

    beta: float | None
    objective: str
    label_smoothing: float = 0.0
    ars_k: float | None = 1.0
    ars_eps: float = 1e-6
    ars_clip: float = 10.0
    ipr_weight: float = 1.0
    ipr_sharpness: float = 1.0
    ipr_threshold: float = 1.0
    ipr_form: str = "bt"
    logit_cap: float | None = None
    chosen_pull: float | None = None
    safeguard_mu: float | None = None
    safeguard_scope: str = "pair"

    @property
    def scales_rejected(self) -> bool:
        return self.objective == "pg_dpo" and self.ars_k is not None

    @property
    def regularizes(self) -> bool:
        return self.objective == "pg_dpo" and self.ipr_weight != 0

    @property
    def in_one_sweep(self) -> bool:
        """A scale for the whole batch must be known before the first pair's slope: not in the kernel's one sweep."""
        return self.safeguard_mu is None or self.safeguard_scope == "pair"

    def arguments(self) -> tuple[str, bool, str, bool, bool, str, tuple[float, ...]]:
        """Objective, ARS, IPR's form, whether capped and pulled, safeguard's scope, and the numbers in the order of
        `formula.preference`.

        Only the numbers change from step to step, and no kernel is compiled for a number.
        """
        numbers = (0.5 * self.beta, 0.5 / self.beta, self.label_smoothing, self.ars_k or 0.0, self.ars_eps)
        numbers += (self.ars_clip, self.ipr_weight, self.ipr_sharpness, self.ipr_threshold)
        numbers += (self.logit_cap or 0.0, self.chosen_pull or 0.0, 1 - (self.safeguard_mu or 0.0))
        return (
            self.objective,
            self.scales_rejected,
            self.ipr_form if self.regularizes else "none",
            self.logit_cap is not None,
            self.chosen_pull is not None,
            "none" if self.safeguard_mu is None else self.safeguard_scope,
            tuple(float(number) for number in numbers),
        )

    def check(self, op: str) -> Preference:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"{op}: objective must be one of {OBJECTIVES} or a callable that makes losses [B] of PairErrors, "
                f"got {self.objective!r}"
            )
        for name, options in (
            ("ipr_form", IPR_FORMS),
            ("safeguard_scope", SAFEGUARD_SCOPES),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{op}: {name} must be one of {options}, got {getattr(self, name)!r}")
        if self.beta is None:
            raise TypeError(
                f"{op}: beta must be given for objective {self.objective!r}, a finite number above 0"
            )
        check_number(op, "beta", self.beta, above=0)
        check_number(op, "label_smoothing", self.label_smoothing, least=0)
        if self.label_smoothing >= 0.5:
            raise ValueError(f"{op}: label_smoothing must be below 0.5, got {self.label_smoothing}")
        if self.label_smoothing and self.objective not in ("dpo", "pg_dpo"):
            raise ValueError(f"{op}: label_smoothing is defined for dpo and pg_dpo, not for {self.objective}")
        if self.ars_k is not None:
            check_number(op, "ars_k", self.ars_k)
        check_number(op, "ars_eps", self.ars_eps, above=0)
        check_number(op, "ars_clip", self.ars_clip, above=0)
        check_number(op, "ipr_weight", self.ipr_weight, least=0)
        if self.ipr_form == "switch" and self.ipr_weight > 1:
            raise ValueError(
                f"{op}: ipr_weight must be between 0 and 1 with ipr_form='switch', got {self.ipr_weight}"
            )
        check_number(op, "ipr_sharpness", self.ipr_sharpness)
        check_number(op, "ipr_threshold", self.ipr_threshold)
        for name, bound in (("logit_cap", {"above": 0}), ("chosen_pull", {"least": 0})):
            if getattr(self, name) is not None:
                check_number(op, name, getattr(self, name), **bound)
                if self.objective == "ipo":
                    raise ValueError(
                        f"{op}: {name} is not defined for ipo, which regresses to a margin of its own"
                    )
        if self.safeguard_mu is not None:
            check_number(op, "safeguard_mu", self.safeguard_mu, least=0)
            if self.safeguard_mu > 1:
                raise ValueError(f"{op}: safeguard_mu must be between 0 and 1, got {self.safeguard_mu}")
        return self


OPTIONS = {field.name for field in fields(Preference)} - {"beta", "objective"}


def checked_objective(
    op: str, objective: Objective, beta: float | None, timestep_weight, segment_labels, options: dict
) -> Preference | Custom:
    """The named objective with its numbers, or the callable, for which these have no meaning."""
    if options and not options.keys() <= OPTIONS:
        unknown = ", ".join(sorted(options.keys() - OPTIONS))
        raise TypeError(f"{op}: unknown option {unknown}; options are {', '.join(sorted(OPTIONS))}")
    if not callable(objective):
        return Preference(beta, objective, **options).check(op)
    given = {"beta": beta, "timestep_weight": timestep_weight, "segment_labels": segment_labels, **options}
    if given := ", ".join(name for name, value in given.items() if value is not None):
        raise ValueError(
            f"{op}: {given} can't be given beside a callable objective, which doesn't read it; let it close over what "
            "it needs"
        )
    return objective


def check_reduction(op: str, reduction: str, loss_scale: float) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if loss_scale != 1.0:
        check_number(op, "loss_scale", loss_scale, above=0)
