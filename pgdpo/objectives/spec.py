"""What an objective declares about itself: its formula, its options and their ranges, what it needs.

Nothing here imports torch, so that a configuration is checked and the catalogue printed in an instant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import did_you_mean

if TYPE_CHECKING:
    from pgdpo.objectives.batch import Terms

CONFIDENCE = {
    "code": "restated from the authors' public code",
    "paper": "restated from the paper",
    "notes": "restated second-hand, from notes on the paper",
    "reconstructed": "in part second-hand, in part our reconstruction; see the note",
    "ours": "the paper names the idea; the form is ours",
}

AUTO = "auto"
TABLE = "[[sigma, weight], ...]"

POOLED = (
    "the batch that its samples are compared in is one micro-batch of all ranks (ranks x train.micro_batch_groups), "
    "not train.global_batch_groups"
)


@dataclass(frozen=True)
class Option:
    """One option: its default, what it means and what is allowed."""

    default: float | str
    about: str
    least: float | None = None  # allowed: value >= least
    above: float | None = None  # allowed: value > above
    most: float | None = None  # allowed: value <= most
    below: float | None = None  # allowed: value < below
    choices: tuple[str, ...] = ()
    auto: bool = False  # `auto` stands for a number that a run finds before its first step
    table: bool = False  # points of a function of sigma stand for it too, as `check_table` has them

    @property
    def allowed(self) -> str:
        if self.choices:
            return " | ".join((*self.choices, *[TABLE] * self.table))
        bounds = (("≥", self.least), (">", self.above), ("≤", self.most), ("<", self.below))
        given = [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
        return (" and ".join(given) or "any number") + (f", or {AUTO}" if self.auto else "")

    def check(self, where: str, value: Any) -> float | str | list[list[float]]:
        """The value, numbers as float. Raises InputError with `where` (objective and key) if not allowed."""
        if self.auto and value == AUTO:
            return value
        if self.table and isinstance(value, (list, tuple)):
            return check_table(where, value)
        if self.choices:
            if value in self.choices:
                return value
            hint = did_you_mean(value, self.choices)
            raise InputError(f"{where} is {value!r}; allowed: {self.allowed}{hint}")
        if not _is_real(value):
            text = isinstance(value, str) and _is_number(value)
            hint = " (YAML reads 5e3 as text; write 5.0e+3)" if text else ""
            raise InputError(f"{where} is {value!r}; allowed: {self.allowed}{hint}")
        inside = (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )
        if not inside:
            raise InputError(f"{where} is {value!r}; allowed: {self.allowed}")
        return float(value)


def check_table(where: str, points: Sequence[Any]) -> list[list[float]]:
    """Points `[[sigma, weight], ...]` of a function of sigma, as floats. Raises InputError naming the entry."""
    if len(points) < 2:
        raise InputError(f"{where} is {points!r}; allowed: {TABLE}, two points or more")
    least = "≥ 0"
    for number, point in enumerate(points, start=1):
        pair = isinstance(point, (list, tuple)) and len(point) == 2 and all(map(_is_real, point))
        rises = pair and 0 <= point[0] <= 1 and (number == 1 or point[0] > points[number - 2][0])
        if not (rises and 0 <= point[1] < math.inf):
            allowed = f"[sigma, weight], sigma {least} and ≤ 1, weight ≥ 0"
            raise InputError(f"{where}: entry {number} is {point!r}; allowed: {allowed}")
        least = f"above entry {number}'s {point[0]:g}"
    return [[float(sigma), float(weight)] for sigma, weight in points]


def beta(default: float = 5000.0, *, auto: bool = False) -> Option:
    """`auto`: the loss falls with κ times the margin, so that a run can find the β that fits it."""
    about = "pull towards the reference; κ = β/2 unless the formula shows β"
    return Option(default, about, above=0, auto=auto)


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the trainer and of the data."""

    reference: bool = True  # the reference's errors: `excess_*`, `ref_*`
    predictions: bool = False  # the reference's predictions, for `drift_*`; cached errors don't do
    cross: bool = False  # `PairErrors.cross`
    pairs: tuple[str, ...] = ()  # fields of `PairInfo`
    soft: bool = False  # `probability` between 0 and 1 in some rows: with hard labels it is another objective
    moving: bool = False  # a reference that follows the policy as an EMA
    noisy: str = "drawn"  # noisy latents and target: drawn | inverted | siblings (of one sampled path)
    data: str = ""  # anything else, in words

    def __and__(self, other: Needs) -> Needs:
        """Both; no reference if either can do without."""
        return Needs(
            reference=self.reference and other.reference,
            predictions=self.predictions or other.predictions,
            cross=self.cross or other.cross,
            pairs=tuple(dict.fromkeys(self.pairs + other.pairs)),
            soft=self.soft or other.soft,
            moving=self.moving or other.moving,
            noisy=other.noisy if self.noisy == "drawn" else self.noisy,
            data="; ".join(filter(None, (self.data, other.data))),
        )


@dataclass(frozen=True)
class Near:
    """The objective that another one nearly is at some values of its options."""

    name: str
    within: float  # relative difference of the gradients, for rewards of order 1e-3
    differs: str  # the values at which it is itself
    beta: float | None = None  # of the other one; None: it has none

    def __str__(self) -> str:
        like = self.name if self.beta is None else f"{self.name} at beta {self.beta:g}"
        share = f", to {self.within:.1g} of its gradient" if self.within else ""
        return f"is {like} at these options{share}: {self.differs}"


def none_other(options: Mapping[str, Any]) -> None:
    """The `near` of an objective that is itself at any options, the `conflict` of one whose options all go together."""


def always(options: Mapping[str, Any]) -> bool:
    """The `fused` of an objective that `diffusion_dpo_loss` has at any options."""
    return True


def never(options: Mapping[str, Any]) -> bool:
    """The `fused` of an objective that needs its errors."""
    return False


@dataclass(frozen=True)
class Spec:
    """One objective. `compute(batch, **options)` is its formula; the options are the function's keywords."""

    name: str
    paper: str
    summary: str  # up to the first `:` or `;` the few words of the list
    formula: str
    confidence: str  # a key of CONFIDENCE
    compute: Callable[..., Terms]
    options: Mapping[str, Option] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)
    needs_if: Mapping[tuple[str, str], Needs] = field(default_factory=dict)  # what option=value changes
    note: str = ""
    near: Callable[[Mapping[str, Any]], Near | None] = none_other  # what it nearly is under its options
    without: Mapping[str, str] = field(
        default_factory=dict
    )  # a column it can do without, and what it is then
    negative: bool = False  # it trains the unconditional branch of classifier-free guidance
    # Whether its formula asks for nothing but `Batch.preference` and the pairs' own fields, under its options.
    fused: Callable[[Mapping[str, Any]], bool] = never
    conflict: Callable[[Mapping[str, Any]], str | None] = none_other  # what is wrong with options together
    pools: bool = False  # its loss hangs on the other groups of the batch
    of_groups: tuple[str, ...] = ()  # fields of samples that it needs of groups, beside `needs.pairs`
    groups: bool = False  # its formula reads groups of any size; any other compares pairs, by `pairing`
    # Whether what trains in it has beta times omega_t, by `Batch.kappa`, `scaled` or `preference`.
    reads_omega: bool = True
    # The settings, beside the columns of `needs.pairs`, with which a test trains it through the real trainer. None: no
    # prepared data hold the samples, or the start, that it was published with.
    trained_with: tuple[str, ...] | None = ()

    @property
    def gist(self) -> str:
        """What it does, in the few words that its summary begins with."""
        return re.split("[:;.] ", self.summary)[0].rstrip(".")

    @property
    def cited(self) -> str:
        """Its paper in short: the first arXiv number, else who or what is behind the name."""
        numbers = re.findall(r"arXiv [\d.]+", self.paper)
        return numbers[0] if numbers else self.paper.partition(" (")[0].rpartition(", ")[2]

    def needs_with(self, options: Mapping[str, Any]) -> Needs:
        """What it needs under these options."""
        needs = self.needs
        for (option, value), change in self.needs_if.items():
            if options[option] == value:
                needs = needs & change
        return needs


def objective(**declared: Any) -> Callable[[Callable[..., Terms]], Spec]:
    """Declare the function below, a formula in code, as the objective of its name: the other fields of `Spec`."""
    return lambda compute: Spec(name=compute.__name__, compute=compute, **declared)


def check_known(where: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises InputError for the first key that is not known, with the nearest one and the list."""
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) or "."
            raise InputError(f"{where} has no option `{key}`{hint} Its options: {', '.join(known) or 'none'}")


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
