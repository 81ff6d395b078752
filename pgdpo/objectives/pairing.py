"""Which samples of a group an objective on pairs compares: a named rule, `pairing`.

    best_worst   the best against the worst
    all          every better sample against every worse one
    adjacent     every sample against the next worse one

Samples of one rank are not compared. A group's loss is the mean over its pairs, so that each group weighs the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from pgdpo.objectives.info import PairInfo

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo_kernels import GroupErrors, PairErrors

SPREAD = 0x1E3779B97F4A7C15  # odd, so that products differ

# (better, worse) places of a group of K samples that are ordered from best to worst.
PAIRINGS: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "best_worst": lambda size: [(0, size - 1)],
    "all": lambda size: list(itertools.combinations(range(size), 2)),
    "adjacent": lambda size: [(place, place + 1) for place in range(size - 1)],
}


@dataclass(frozen=True)
class Pairing:
    """P = n * B pairs of the samples of B groups of K: pair i of group g is number i * B + g."""

    chosen: Tensor  # [P] rows of the samples, [K * B] member by member
    rejected: Tensor  # [P]
    counts: Tensor  # [n, B] 1 where the two are of different ranks, else 0

    @classmethod
    def of(cls, rule: str, places: Tensor) -> Pairing:
        """`places` `[B, K]`: of each sample the place in its group, 0 the best; K of 2 or more."""
        import torch

        groups, size = places.shape
        better, worse = map(list, zip(*PAIRINGS[rule](size), strict=True))
        order = places.argsort(dim=1, stable=True)
        chosen, rejected = order[:, better].T, order[:, worse].T  # (n, B) members
        differ = places.T.gather(0, chosen) < places.T.gather(0, rejected)
        row = torch.arange(groups, device=places.device)
        return cls(
            *((member * groups + row).reshape(-1) for member in (chosen, rejected)), differ.to(places.dtype)
        )

    def info(self, info: PairInfo) -> PairInfo:
        """What the data say of the pairs, from what they say of the groups and their samples."""
        pairs, groups = self.counts.shape
        values = {}
        for each in fields(info):
            value = getattr(info, each.name)
            if value is None:
                continue
            if each.name in info.of_samples and value.ndim == 2:
                by_row = value.T.reshape(-1)
                values[each.name] = by_row[self.chosen], by_row[self.rejected]
            else:
                values[each.name] = value.repeat(pairs, *[1] * (value.ndim - 1))
        if info.ids is not None:  # a random choice is made for each pair
            values["ids"] = values["ids"] ^ _numbers(info.ids, pairs, groups)
        sides = {name: value for name, value in values.items() if isinstance(value, tuple)}
        if "reward" in sides and info.reward_margin is None:
            values["reward_margin"] = sides["reward"][0] - sides["reward"][1]
        if info.probability is None:
            values["probability"] = self.counts.new_ones(pairs * groups)
        stacked = {name: _beside(*value) for name, value in sides.items()}
        return replace(PairInfo(), **{**values, **stacked, "rank": None, "weight": None})

    def per_group(self, per_pair: Tensor) -> Tensor:
        """`[P]` -> `[B]`: the mean over a group's pairs of different ranks, 0 where there is none."""
        kept = per_pair.reshape(self.counts.shape).where(self.counts > 0, 0.0)
        return kept.sum(0) / self.counts.sum(0).clamp_min(1)


def best_and_worst(errors: GroupErrors, info: PairInfo) -> tuple[PairErrors, Tensor]:
    """(the errors of each group's best sample against its worst, `[B, S]`; the samples' places `[B, K]`).

    Of a group of one, or of equals, both are the same sample.
    """
    import torch

    size = errors.groups
    places = places_of(info, len(errors.policy) // size, size, errors.policy.detach())
    row = torch.arange(len(places), device=places.device)
    best, worst = (place * len(places) + row for place in ends_of(places))
    return errors.pairs(best, worst), places


def ends_of(places: Tensor) -> tuple[Tensor, Tensor]:
    """Members `[B]`: the first of the best ones and the last of the worst, as in an order that keeps equal ones as they
    stand; both the first one where all are equal."""
    best, last = places.argmin(1), places.shape[1] - 1
    return best, (last - places.flip(1).argmax(1)).where(places.amax(1) > places.amin(1), best)


def places_of(info: PairInfo, groups: int, size: int, like: Tensor) -> Tensor:
    """The place of each sample in its group, `[B, K]`, 0 the best, in the dtype of `like`.

    By `rank`, else by falling `reward`, `advantage` or `label`; of samples without any the first is the best.
    """
    import torch

    if info.rank is not None:
        return info.rank.to(like)
    for value in (info.reward, info.advantage, info.label):
        if value is not None and value.ndim == 2:
            value = value.to(like)
            return (value[:, None, :] > value[:, :, None]).sum(2).to(like)
    return torch.arange(size, device=like.device).to(like).expand(groups, size)


def _beside(chosen: Tensor, rejected: Tensor) -> Tensor:
    import torch

    return torch.stack((chosen, rejected), 1)


def _numbers(ids: Tensor, pairs: int, groups: int) -> Tensor:
    """`[P]` numbers of 62 bits that differ between a group's pairs, 0 of the first."""
    import torch

    spread = torch.arange(pairs, device=ids.device) * SPREAD & 2**62 - 1
    return spread.repeat_interleave(groups)
