"""The order in which groups are visited: a pure function of (seed, position), whatever the number of ranks.

The order is a sequence of micro-batches: so many whole groups of one bucket, which are of one size K and one shape, so
that a micro-batch is one tensor. (A pair is a group of two.) A bucket's groups stand in a line without end: all of them
shuffled, then all of them shuffled anew, and so on; an epoch's rest that fills no micro-batch is carried over into the
next epoch's first. Every micro-batch is full: each group has the same weight in each step's loss, and every rank has
the same work. Epoch e has the micro-batches that its groups complete, with the buckets in random order. A group is
visited once for every draw 0, 1, 2, ...: none is lost, none repeated. Where manifests have shares, `Mixture`
(mixture.py) stands in the place of `Order`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

INTERLEAVING = 1 << 32  # stream of the buckets' order; the buckets' own streams are 0, 1, ...


class Order:
    """Micro-batches of (index, draw) by number, from 0 without end.

    `buckets`: indexes of the groups in each bucket; `micro_batch`: groups in a micro-batch; `stages`: of every group
    the part of an epoch in which it is visited (0, 1, ...: a curriculum), within which they are shuffled; None: one.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[int]],
        *,
        micro_batch: int,
        seed: int,
        stages: Sequence[int] | None = None,
    ) -> None:
        self._buckets = [np.asarray(bucket) for bucket in buckets if len(bucket)]
        self._groups = sum(map(len, self._buckets))
        self._micro_batch, self._seed = micro_batch, seed
        self._stages = None if stages is None else np.asarray(stages)
        self._shuffled = functools.lru_cache(maxsize=4 * len(self._buckets))(self._shuffle)
        self._interleaved = functools.lru_cache(maxsize=2)(self._interleave)

    def micro_batch(self, number: int) -> list[tuple[int, int]]:
        """The micro-batch's (index, draw)s; the draw counts a group's visits."""
        bucket, ordinal = self._place(number)
        first = ordinal * self._micro_batch
        return [self._visit(bucket, position) for position in range(first, first + self._micro_batch)]

    def bucket(self, number: int) -> int:
        """The bucket that its groups are of."""
        return self._place(number)[0]

    def _visit(self, bucket: int, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, len(self._buckets[bucket]))
        return int(self._buckets[bucket][self._shuffled(bucket, epoch)[offset]]), epoch

    def _place(self, number: int) -> tuple[int, int]:
        """(bucket, number of the micro-batch among the bucket's own)."""
        epoch = number * self._micro_batch // self._groups
        while sum(self._completed(epoch + 1)) <= number:
            epoch += 1
        buckets, ordinals = self._interleaved(epoch)
        offset = number - sum(self._completed(epoch))
        return int(buckets[offset]), int(ordinals[offset])

    def _completed(self, epoch: int) -> list[int]:
        """Micro-batches of each bucket before `epoch`."""
        return [epoch * len(bucket) // self._micro_batch for bucket in self._buckets]

    def _interleave(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(bucket, number among its own) of each micro-batch of an epoch."""
        begins, ends = self._completed(epoch), self._completed(epoch + 1)
        buckets = np.repeat(np.arange(len(begins)), np.subtract(ends, begins))
        ordinals = np.concatenate([np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)])
        order = np.arange(len(buckets))
        if len(begins) > 1:  # a bucket's own keep their order: what is in them is shuffled already
            buckets = buckets[_random(self._seed, epoch, INTERLEAVING).permutation(len(buckets))]
            order = np.argsort(np.argsort(buckets, kind="stable"), kind="stable")
        return buckets, ordinals[order]

    def _shuffle(self, bucket: int, epoch: int) -> np.ndarray:
        return shuffled(self._buckets[bucket], self._seed, epoch, bucket, self._stages)


def shuffled(
    groups: np.ndarray, seed: int, epoch: int, stream: int, stages: np.ndarray | None = None
) -> np.ndarray:
    """Places among `groups` in an epoch's order; `stages`: of every index, the part of the epoch that it belongs to."""
    places = _random(seed, epoch, stream).permutation(len(groups))
    if stages is None:
        return places
    return places[np.argsort(stages[groups[places]], kind="stable")]


def _random(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]))
