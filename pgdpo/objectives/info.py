"""What the data bring with groups and pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo_kernels import PairErrors


@dataclass
class PairInfo:
    """What the data may bring with `B` groups of `K` samples; a pair is a group of two. Every field is optional.

    `[B, K]` holds a number for each sample: of a pair for chosen and rejected. `S`: temporal segments.
    """

    of_samples: ClassVar[tuple[str, ...]] = ("reward", "rank", "advantage", "label")

    weight: Tensor | None = None  # [B] weight of the group; the loss is the mean over B of weight * loss
    probability: Tensor | None = None  # [B] in 0..1: that the chosen is better
    reward_margin: Tensor | None = None  # [B] a reward model's score of the chosen minus that of the rejected
    reward: Tensor | None = None  # [B, K] a reward model's scores
    label_smoothing: Tensor | None = None  # [B] in 0..0.5: share of wrong labels; takes the option's place
    segment_labels: Tensor | None = None  # [B, S] +1: chosen better here, -1: rejected better, 0: tie
    tail: Tensor | None = None  # [B, S] in 0..1: share of the segment that lies beyond the shorter clip
    rank: Tensor | None = None  # [B, K] place in the group, 0 is best; equal ones are ties
    uncertainty: Tensor | None = None  # [B] >= 0
    gap_frequency: Tensor | None = None  # [B] in 0..1: share of all pairs with a score gap like this one
    timestep: Tensor | None = None  # [B] in the model's own unit
    timestep_weight: Tensor | None = None  # [B] omega_t, a factor of beta in the logit
    advantage: Tensor | None = None  # [B, K], or [B] of the chosen, the rejected having its negative
    label: Tensor | None = None  # [B, K] +1 desirable, -1 undesirable, 0 absent (unpaired data)
    masked: PairErrors | None = None  # the errors under the region mask
    parts: dict[str, Tensor] | None = (
        None  # part -> [B] +1: as the pair, -1: the other way, 0: a tie; of pairs alone
    )
    ids: Tensor | None = None  # [B] int64, on the CPU: with `draw` what a group's random choices hang on
    draw: Tensor | None = None  # [B] int64, on the CPU: how often the group was drawn before


# Fields that groups have as pairs do, and the keys of samples of which another field needs one.
OF_GROUPS = ("weight", "label_smoothing", "uncertainty", "gap_frequency", "timestep_weight")
FROM_SAMPLES = {
    "reward": ("score",),
    "reward_margin": ("score",),
    "advantage": ("advantage", "score"),
    "label": ("label",),
}


def on_groups(fields: Iterable[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """(those fields of `PairInfo` that pairs alone can have; for each that samples bring, the keys of which every
    sample needs one)."""
    read = [field for field in fields if field not in (*OF_GROUPS, "probability", "timestep")]
    return (
        [field for field in read if field not in FROM_SAMPLES],
        [FROM_SAMPLES[field] for field in read if field in FROM_SAMPLES],
    )
