"""What becomes of pairs that cannot be read: `data.on_bad_data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pgdpo.errors import InputError

CEILING = 0.01  # share of the pairs that may be bad where they are skipped
SHOWN = 5


def check_bad(bad: Mapping[str, str], pairs: int, policy: Literal["fail", "skip"], where: str) -> None:
    """`bad`: pair id -> what is wrong with it. Raises InputError, naming pairs, if the run must stop.

    `fail`: if there is any; `skip`: if they are more than 1% of `pairs`, all that there were.
    """
    if not bad or (policy == "skip" and len(bad) <= CEILING * pairs):
        return
    distinct = list(dict.fromkeys(bad.values()))  # pairs of a damaged file share its message
    reasons = distinct[:SHOWN]
    more = [f"and {len(distinct) - SHOWN} more"] if len(distinct) > SHOWN else []
    if policy == "skip":
        share = (
            f"{len(bad)} of {pairs} pairs are bad, {len(bad) / pairs:.1%}; up to {CEILING:.0%} may be skipped"
        )
        raise InputError("\n".join([f"{where}: {share} (data.on_bad_data):", *reasons, *more]))
    raise InputError("\n".join([*reasons, *more]))
