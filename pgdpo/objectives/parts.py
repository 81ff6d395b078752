"""A preference over several parts of a sample, such as picture and sound: how their errors become one loss.

Each part has its own errors, E_p, its own excess e_p and margin m_p, each a mean over that part's elements; its weight
w_p is `objective.parts`.

    inside     one sigmoid over weighted sums: the objective of E = sum_p w_p E_p, and so of m = sum_p w_p m_p
    separate   a sigmoid a part: the loss is sum_p w_p L(E_p)

A part that a sample lacks is in no sum: the others' numbers are what they are without it, to the bit. A part whose
label is the other way has chosen and rejected exchanged; one with a tie is in no sum either. The two forms are ours.

Of temporal segments a part may have other shares of its elements than another: two frames of picture and nine of sound
are cut 1:1 and 4:5. A part's error of a segment then goes into the sum by its own share of it, so that the mean over
segments by `count` is the weighted sum of the parts' own means. Labels of segments weigh no counts: beside them a
segment's error is the plain sum, as a whole sample's is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import did_you_mean
from pgdpo.objectives.advice import SATURATED

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo.objectives.info import PairInfo
    from pgdpo_kernels import GroupErrors, PairErrors

    Errors = PairErrors | GroupErrors

FORMS = ("inside", "separate")


@dataclass(frozen=True)
class Parts:
    """`weights`: of the parts by name, those that are not named have 1; `form`: see above."""

    weights: Mapping[str, float] = field(default_factory=dict)
    form: str = "inside"

    @classmethod
    def read(cls, given: object, names: tuple[str, ...] | None = None) -> Parts:
        """Of `{part: weight, ..., form: inside | separate}`; None: all weights 1, inside.

        `names`: the parts that there are. Raises InputError naming the key, its value and what is allowed.
        """
        where = "objective.parts"
        if given is None:
            return cls()
        known = [*(names or ()), "form"]
        if not isinstance(given, Mapping):
            raise InputError(f"{where} is {given!r}; allowed: a mapping of {', '.join(known)}")
        weights = {key: value for key, value in given.items() if key != "form"}
        for key, value in weights.items():
            if names is not None and key not in names:
                hint = did_you_mean(key, known) or "."
                raise InputError(f"{where}: unknown part `{key}`{hint} Allowed: {', '.join(known)}")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise InputError(f"{where}.{key} is {value!r}; allowed: a number ≥ 0")
        form = given.get("form", "inside")
        if form not in FORMS:
            raise InputError(f"{where}.form is {form!r}; allowed: {', '.join(FORMS)}")
        if names and not any(weights.get(name, 1) for name in names):
            raise InputError(
                f"{where}: all weights are 0, and nothing is learnt: give one of {', '.join(names)} more"
            )
        return cls({key: float(value) for key, value in weights.items()}, form)

    def weight(self, part: str) -> float:
        return self.weights.get(part, 1.0)


def oriented(errors: Mapping[str, Errors], info: PairInfo) -> dict[str, Errors]:
    """The parts' errors with chosen and rejected as each part's own label has them (`PairInfo.parts`)."""
    labels = info.parts or {}
    return {name: _exchanged(part, labels[name]) if name in labels else part for name, part in errors.items()}


def joint(
    errors: Mapping[str, Errors], info: PairInfo, parts: Parts, *, segments_labelled: bool = False
) -> Errors:
    """The weighted sums of the parts' errors, differentiable by them; `count` is the sum of the parts', divided over
    segments by the mean of their shares; without `cross`. `segments_labelled`: the objective reads labels of them."""
    found: dict[str, Tensor] = {}
    shares = _shares_of(errors)
    mean = sum(shares.values()) / len(shares) if shares else None
    for name, part in oriented(errors, info).items():
        share = share_of(parts.weight(name), info, name)
        for each in fields(part):
            value = getattr(part, each.name)
            if each.name in ("groups", "cross") or value is None:
                continue
            if each.name != "count":
                value = times(value, share)
                if shares and not segments_labelled:
                    value = value * (shares[name] / mean.where(mean > 0, 1.0))
            found[each.name] = found[each.name] + value if each.name in found else value
    if shares:
        found["count"] = mean * found["count"].sum(1, keepdim=True)
    return replace(next(iter(errors.values())), cross=None, **found)


def _shares_of(errors: Mapping[str, Errors]) -> dict[str, Tensor]:
    """Of several parts in several segments: each segment's share of a part's elements, `[B, S]`."""
    counts = {name: part.count for name, part in errors.items()}
    if len(counts) == 1 or any(count is None or count.shape[1] == 1 for count in counts.values()):
        return {}
    return {name: count / count.sum(1, keepdim=True).clamp_min(1e-30) for name, count in counts.items()}


def share_of(weight: float, info: PairInfo, name: str) -> Tensor | float:
    """The weight of a part, `[B]` where some pairs are a tie in it."""
    labels = (info.parts or {}).get(name)
    return weight if labels is None else weight * labels.ne(0).float()


def flat_share(logits: Mapping[str, Tensor], info: PairInfo, parts: Parts) -> Tensor:
    """Of parts with a sigmoid each and these `logits` `[B]`: of those that count, the share `[B]` that is saturated."""
    flat, counted = 0.0, 0.0
    for name, logit in logits.items():
        counts = (times(logit.new_ones(logit.shape), share_of(parts.weight(name), info, name)) > 0).float()
        flat = flat + counts * (logit.abs() > SATURATED)
        counted = counted + counts
    return flat / counted.clamp_min(1)


def times(value: Tensor, share: Tensor | float) -> Tensor:
    """`value` `[B, ...]` times the share; 0, whatever it is, where that is 0."""
    if isinstance(share, float):
        return value if share == 1 else value * share if share else value.new_zeros(value.shape)
    share = share.to(value).view(-1, *[1] * (value.ndim - 1))
    return (share * value).where(share > 0, 0.0)


def _exchanged(errors: PairErrors, label: Tensor) -> PairErrors:
    """With chosen and rejected exchanged where the label `[B]` is negative."""
    other = (label < 0).to(errors.policy_chosen.device)[:, None]
    found = {}
    for each in fields(errors):
        name, value = each.name, getattr(errors, each.name)
        stem, _, side = name.rpartition("_")
        if value is None or side not in ("chosen", "rejected"):
            continue
        opposite = getattr(errors, f"{stem}_{'rejected' if side == 'chosen' else 'chosen'}")
        found[name] = opposite.where(other, value)
    return replace(errors, **found)
