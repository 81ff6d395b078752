"""A covering design: few rows, in which every pair of values of two factors occurs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, object]


def covering(factors: Mapping[str, Sequence], allowed: Callable[[Row], bool] = lambda _: True) -> list[Row]:
    """Rows with a value of every factor, so that each allowed pair of values of two factors stands in one of them.

    Greedy, as AETG (Cohen et al., IEEE TSE 23(7), 1997) without its chance: a row begins with the first pair that is
    left, and each other factor takes the value that has most of the left pairs with what the row holds. There are at
    least as many rows as the two largest factors have pairs. `allowed`: of a row or a part of it; what it allows must
    leave every other factor a value.
    """
    pairs = itertools.chain.from_iterable(
        itertools.product(_each(one, factors), _each(other, factors))
        for one, other in itertools.combinations(factors, 2)
    )
    left = {frozenset(pair): dict(pair) for pair in pairs if allowed(dict(pair))}
    rows = []
    while left:
        row = dict(next(iter(left.values())))
        for name in factors:
            if name not in row:
                row[name] = _best(row, name, factors[name], left, allowed)
        for pair in itertools.combinations(row.items(), 2):
            left.pop(frozenset(pair), None)
        rows.append({name: row[name] for name in factors})
    return rows


def _each(name: str, factors: Mapping[str, Sequence]) -> list[tuple[str, object]]:
    return [(name, value) for value in factors[name]]


def _best(row: Row, name: str, values: Sequence, left: Mapping, allowed: Callable[[Row], bool]) -> object:
    """The first of the values that have most of the pairs that are left."""
    fit = [value for value in values if allowed({**row, name: value})]
    return max(fit, key=lambda value: sum(frozenset((item, (name, value))) in left for item in row.items()))
