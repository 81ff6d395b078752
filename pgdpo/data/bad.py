"""What becomes of pairs that cannot be read: `data.on_bad_data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pgdpo.messages.errors import InputError

CEILING = 0.01  # share of the pairs that may be bad where they are skipped
SHOWN = 5


def are_skipped(bad: int, pairs: int, policy: Literal["fail", "skip"]) -> bool:
    """Whether `bad` of `pairs` pairs are left out, and the rest is gone on with."""
    return policy == "skip" and bad <= CEILING * pairs


def too_many(bad: int, pairs: int) -> str:
    """Why they are not, in words."""
    return f"{bad} of {pairs} pairs are bad, {bad / pairs:.1%}; up to {CEILING:.0%} may be skipped"


def check_bad(bad: Mapping[str, str], pairs: int, policy: Literal["fail", "skip"], where: str) -> None:
    """`bad`: pair id -> what is wrong with it. Raises InputError, naming pairs, if the run must stop.

    `fail`: if there is any; `skip`: if they are more than 1% of `pairs`, all that there were.
    """
    if not bad or are_skipped(len(bad), pairs, policy):
        return
    distinct = list(dict.fromkeys(bad.values()))  # pairs of a damaged file share its message
    reasons = distinct[:SHOWN]
    more = [f"and {len(distinct) - SHOWN} more"] if len(distinct) > SHOWN else []
    if policy == "skip":
        what = f"{where}: {too_many(len(bad), pairs)} (data.on_bad_data):"
        raise InputError("\n".join([what, *reasons, *more]))
    raise InputError("\n".join([*reasons, *more]))
