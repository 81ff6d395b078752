"""The order in which groups of several manifests are visited in fixed shares: as `Order`, a pure function of (seed,
position), whatever the number of ranks and the manifests' sizes.

Each manifest's groups of each bucket stand in a line without end of their own, shuffled anew in every pass. What stands
at a position is dealt out evenly, not drawn: micro-batches to buckets by how often these are visited, the places of a
bucket's micro-batches to its manifests. After any number of groups each has had its share to within a few, and a group
comes again only when all others of its manifest and bucket came.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

import numpy as np

from pgdpo.data.visits.order import shuffled
from pgdpo.messages.errors import InputError


def dealt(position: int, weights: Sequence[int]) -> tuple[int, int]:
    """(which of the weights a position, from 0, falls to; how many before it fell to the same), evenly.

    Two weights take turns as a line of that slope is drawn in pixels; more are halved until two are left: after n
    positions each has had its part of n to within half a position a halving.
    """
    first, end = 0, len(weights)
    while end - first > 1:
        middle = (first + end) // 2
        left, whole = sum(weights[first:middle]), sum(weights[first:end])
        before, after = ((2 * count * left + whole) // (2 * whole) for count in (position, position + 1))
        if after > before:
            position, end = before, middle
        else:
            position, first = position - before, middle
    return first, position


def check_left(shares: Mapping[str, Fraction], sources: Collection[str]) -> None:
    """Raises InputError where a manifest has a share of the visits and no pair among those of `sources`."""
    for name, share in shares.items():
        if name not in sources:
            raise InputError(
                f"data.train: no pair of the manifest `{name}` is left to train on, and its share is {float(share):g}: "
                "leave it out, or loosen what drops its pairs (data.select)"
            )


class Mixture:
    """Micro-batches of (index, draw) by number, from 0 without end; the draw counts a group's own visits.

    `buckets`: indexes of the groups in each bucket; `sources`: of every group the name of its manifest; `shares`: of
    each name, adding up to 1; `micro_batch`: groups in a micro-batch, all of one bucket; `stages`: of every group the
    part of its manifest's pass in which it is visited, or None.

    Raises InputError where a manifest with a share has no group.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]],
        *,
        sources: Sequence[str],
        shares: Mapping[str, Fraction],
        micro_batch: int,
        seed: int,
        stages: Sequence[int] | None = None,
    ) -> None:
        self._micro_batch, self._seed, self._stages = (
            micro_batch,
            seed,
            None if stages is None else np.asarray(stages),
        )
        self._buckets = [np.asarray(bucket) for bucket in buckets if len(bucket)]
        self._cells = [
            [np.array([index for index in bucket if sources[index] == name], int) for name in shares]
            for bucket in self._buckets
        ]  # by bucket and manifest
        check_left(shares, sources)
        pairs = {name: sum(len(cells[place]) for cells in self._cells) for place, name in enumerate(shares)}
        rates = [
            [
                share * len(cell) / pairs[name]
                for (name, share), cell in zip(shares.items(), cells, strict=True)
            ]
            for cells in self._cells
        ]
        self._places = [_whole(rate) for rate in rates]
        self._turns = _whole([sum(rate) for rate in rates])
        self._shuffled = functools.lru_cache(maxsize=4 * len(self._buckets) * len(shares))(self._shuffle)

    def micro_batch(self, number: int) -> list[tuple[int, int]]:
        """The micro-batch's (index, draw)s."""
        bucket, ordinal = dealt(number, self._turns)
        first = ordinal * self._micro_batch
        return [self._visit(bucket, position) for position in range(first, first + self._micro_batch)]

    def bucket(self, number: int) -> int:
        """The bucket that its groups are of."""
        return dealt(number, self._turns)[0]

    def _visit(self, bucket: int, position: int) -> tuple[int, int]:
        source, visit = dealt(position, self._places[bucket])
        cell = self._cells[bucket][source]
        draw, offset = divmod(visit, len(cell))
        return int(cell[self._shuffled(bucket, source, draw)[offset]]), draw

    def _shuffle(self, bucket: int, source: int, draw: int) -> np.ndarray:
        stream = bucket * len(self._cells[0]) + source
        return shuffled(self._cells[bucket][source], self._seed, draw, stream, self._stages)


def _whole(rates: Sequence[Fraction]) -> list[int]:
    """Whole numbers in the same proportions."""
    whole = math.lcm(*(rate.denominator for rate in rates))
    return [int(rate * whole) for rate in rates]
