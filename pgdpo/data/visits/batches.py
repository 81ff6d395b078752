"""A step's groups, spread over the ranks that train together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgdpo.config import TrainConfig
from pgdpo.data.visits.mixture import Mixture
from pgdpo.data.visits.order import Order
from pgdpo.messages.errors import InputError


def check_batches(train: TrainConfig, ranks: int) -> int:
    """Gradient accumulation steps over `ranks` that read different pairs.

    Raises InputError if the global batch does not split over them.
    """
    chunk = train.micro_batch_groups * ranks
    if train.global_batch_groups % chunk:
        low = train.global_batch_groups // chunk * chunk
        options = f"{low} or {low + chunk}" if low else f"{chunk}"
        raise InputError(
            f"train.global_batch_groups is {train.global_batch_groups}: it must be a multiple of micro_batch_groups x "
            f"data-parallel ranks = {train.micro_batch_groups} x {ranks}: take {options}"
        )
    return train.global_batch_groups // chunk


class StepBatches:
    """Micro-batches of one rank: a step is so many of the order, spread over ranks.

    Which groups a step holds does not depend on the number of ranks, and a group is on one rank, whole. Where there are
    several buckets, ranks work on the same one at a time, as far as the step allows: none waits for another's longer
    clips, or larger groups.

    `draws`: how many draws a group has; its later visits repeat them. None: a new draw at every visit.
    `in_order`: each rank has neighbouring micro-batches, in the order's sequence, whatever their buckets.
    """

    def __init__(
        self,
        order: Order | Mixture,
        *,
        micro_batches: int,
        rank: int,
        world: int,
        steps: range,
        draws: int | None = None,
        in_order: bool = False,
    ) -> None:
        """`micro_batches`: of one step, over all ranks; a multiple of `world`."""
        self.order, self.micro_batches, self.rank, self.world = order, micro_batches, rank, world
        self.steps, self.draws, self.in_order = steps, draws, in_order

    def __len__(self) -> int:
        return len(self.steps) * (self.micro_batches // self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for number in self._mine(step):
                yield [(index, self._draw(visit)) for index, visit in self.order.micro_batch(number)]

    def buckets(self, step: int) -> list[int]:
        """The bucket of each micro-batch of a step, over all ranks."""
        return [self.order.bucket(number) for number in self._all(step)]

    def _all(self, step: int) -> range:
        return range(step * self.micro_batches, (step + 1) * self.micro_batches)

    def _mine(self, step: int) -> Sequence[int]:
        numbers, buckets = self._all(step), self.buckets(step)
        if self.in_order or len(set(buckets)) == 1:
            share = self.micro_batches // self.world
            return numbers[self.rank * share : (self.rank + 1) * share]
        return sorted(numbers, key=self.order.bucket)[self.rank :: self.world]

    def _draw(self, visit: int) -> int:
        return visit if self.draws is None else visit % self.draws
