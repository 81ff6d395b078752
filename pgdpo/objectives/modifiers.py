"""Modifiers that compose with any objective: gradient scales before the formula, weights after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgdpo.errors import InputError
from pgdpo.objectives.batch import Batch, Terms
from pgdpo.objectives.spec import Needs, Option, check_known

if TYPE_CHECKING:
    from torch import Tensor

MODIFIERS: dict[str, Option | dict[str, Option]] = {
    "sft_weight": Option(0.0, "adds this times E_pw (RPO, arXiv 2405.16436)", least=0),
}


def check(where: str, key: str, value: Any) -> Any:
    """A modifier's checked options. Raises InputError."""
    known = MODIFIERS[key]
    if isinstance(known, Option):
        return known.check(where, value)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; allowed: a mapping of {', '.join(known)}")
    check_known(where, value, known)
    return {
        name: option.check(f"{where}: `{name}`", value[name]) if name in value else option.default
        for name, option in known.items()
    }


def add_needs(needs: Needs, options: Mapping[str, Any]) -> Needs:
    """What the objective needs together with its modifiers."""
    return needs


def before(batch: Batch, options: Mapping[str, Any]) -> tuple[Batch, dict[str, Tensor]]:
    """The batch with its gradients scaled, values unchanged."""
    return batch, {}


def after(batch: Batch, terms: Terms, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The pairs' losses `[B]` with terms and weights added."""
    per_pair = terms.per_pair
    if options.get("sft_weight"):
        per_pair = per_pair + options["sft_weight"] * batch.error_chosen
    return per_pair, {}
