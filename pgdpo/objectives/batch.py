"""What an objective sees of a batch, and what it gives back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import shake_256
from struct import unpack
from typing import TYPE_CHECKING, Any

from pgdpo.messages.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from pgdpo.objectives.compared import Compared
    from pgdpo_kernels import PairErrors, PreferenceLoss


@dataclass
class PairInfo:
    """What the data may bring with a pair; every field is optional. Shapes: `B` pairs, `S` temporal segments.

    Fields of shape `[B, 2]` hold a number for the chosen sample and one for the rejected sample.
    """

    weight: Tensor | None = None  # [B] weight of the pair; the loss is the mean over B of weight * loss
    probability: Tensor | None = None  # [B] in 0..1: that the chosen is better
    reward_margin: Tensor | None = None  # [B] a reward model's score of the chosen minus that of the rejected
    reward: Tensor | None = None  # [B, 2] a reward model's scores
    label_smoothing: Tensor | None = None  # [B] in 0..0.5: share of wrong labels; takes the option's place
    segment_labels: Tensor | None = None  # [B, S] +1: chosen better here, -1: rejected better, 0: tie
    tail: Tensor | None = None  # [B, S] in 0..1: share of the segment that lies beyond the shorter clip
    group: Tensor | None = None  # [B] integer id of the list or prompt; by default each pair is its own
    rank: Tensor | None = None  # [B, 2] place in the list, 0 is best, negative: not in the list
    uncertainty: Tensor | None = None  # [B] >= 0
    gap_frequency: Tensor | None = None  # [B] in 0..1: share of all pairs with a score gap like this one
    timestep: Tensor | None = None  # [B] in the model's own unit
    timestep_weight: Tensor | None = None  # [B] omega_t, a factor of beta in the logit
    advantage: Tensor | None = None  # [B, 2], or [B] of the chosen, the rejected having its negative
    label: Tensor | None = None  # [B, 2] +1 desirable, -1 undesirable, 0 absent (unpaired data)
    masked: PairErrors | None = None  # the errors under the region mask
    ids: Tensor | None = None  # [B] int64, on the CPU: with `draw` what a pair's random choices hang on
    draw: Tensor | None = None  # [B] int64, on the CPU: how often the pair was drawn before


@dataclass
class Terms:
    """What an objective's formula gives, before weights and modifiers."""

    per_pair: Tensor  # [B] loss of each pair, differentiable
    logits: Tensor  # [B] the logit: > 0 where the policy agrees with the label
    reward_chosen: Tensor | None = None  # [B] implicit reward before beta; by default -excess
    reward_rejected: Tensor | None = None
    excess_better: Tensor | None = None  # [B] what `chosen_pull` pulls down; by default the chosen's excess
    limited: bool = False  # `logit_cap` and `chosen_pull` are in it, by `Batch.preference`
    stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Batch:
    """Pair errors under the names of the formulas.

    r_w = `reward_chosen`, r_l = `reward_rejected`, m = `margin`, e_w = `excess_chosen`,
    E_pw = `error_chosen`, D_w = `drift_chosen`; all `[B]`, over all segments. `segments` keeps the errors
    per segment, `[B, S]`. Where there are predictions in their place (`compared`), `preference` makes them.
    """

    name: str
    segments: PairErrors | None
    pairs: PairInfo
    state: dict[str, Any]  # of this objective, kept from batch to batch
    process_group: ProcessGroup | None = None
    seed: int = 0
    compared: Compared | None = None
    whole: PreferenceLoss | None = None  # what was made of `compared`, with the pairs' weights in it
    limits: Mapping[str, float] = field(default_factory=dict)  # of `modifiers.LIMITS` those that are given

    @functools.cached_property
    def pooled(self) -> PairErrors:
        return self.segments.over_segments()

    @property
    def shape(self) -> tuple[int, int]:
        """Pairs and segments, (B, S)."""
        return tuple(self.segments.policy_chosen.shape) if self.compared is None else self.compared.shape

    def __len__(self) -> int:
        return self.shape[0]

    def preference(self, **options: Tensor | float | str | None) -> PreferenceLoss:
        """`preference_loss` of these pairs, omega_t in its kappa and `limits` in it, from errors or from predictions;
        options are its own."""
        options |= self.limits
        omega = self.info("timestep_weight") if self.has("timestep_weight") else None
        if self.compared is None:
            from pgdpo_kernels import preference_loss

            return preference_loss(self.segments, timestep_weight=omega, **options)
        weight = self.info("weight") if self.has("weight") else None
        self.whole = self.compared.loss(weight=weight, timestep_weight=omega, **options)
        self.segments = self.whole.errors
        return self.whole

    @property
    def error_chosen(self) -> Tensor:
        return self.pooled.policy_chosen[:, 0]

    @property
    def error_rejected(self) -> Tensor:
        return self.pooled.policy_rejected[:, 0]

    @property
    def excess_chosen(self) -> Tensor:
        return self.pooled.excess_chosen[:, 0]

    @property
    def excess_rejected(self) -> Tensor:
        return self.pooled.excess_rejected[:, 0]

    @property
    def reward_chosen(self) -> Tensor:
        return -self.excess_chosen

    @property
    def reward_rejected(self) -> Tensor:
        return -self.excess_rejected

    @property
    def margin(self) -> Tensor:
        return self.excess_rejected - self.excess_chosen

    @property
    def drift_chosen(self) -> Tensor:
        return self.pooled.drift_chosen[:, 0]

    @property
    def drift_rejected(self) -> Tensor:
        return self.pooled.drift_rejected[:, 0]

    def kappa(self, beta: float) -> Tensor:
        """kappa = beta/2 * omega_t, `[B]`, the factor of an implicit reward in a logit."""
        return 0.5 * self.scaled(beta)

    def scaled(self, beta: float) -> Tensor:
        """beta * omega_t, `[B]`, for the rows whose published code has no half."""
        if self.has("timestep_weight"):
            return beta * self.info("timestep_weight")
        return self.error_chosen.new_full((len(self),), beta)

    def rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """kappa * r_w and kappa * r_l."""
        kappa = self.kappa(beta)
        return kappa * self.reward_chosen, kappa * self.reward_rejected

    def logit(self, beta: float) -> Tensor:
        """z = kappa * m."""
        return self.kappa(beta) * self.margin

    def with_excess(self, chosen: Tensor, rejected: Tensor) -> Batch:
        """The same pairs with another excess over the reference, `[B, S]` each."""
        return replace(self, segments=replace(self.segments, excess_chosen=chosen, excess_rejected=rejected))

    def segment_labels(self) -> Tensor:
        """`[B, S]` of -1, 0, +1."""
        return self.info("segment_labels", self.shape[1])

    def sided(self, name: str) -> Tensor:
        """`[B, 2]`, of a field that may also be `[B]`: the rejected then has its negative."""
        if getattr(self.pairs, name).dim() > 1:
            return self.info(name, 2)
        signed = self.info(name)
        return signed[:, None] * signed.new_tensor([1.0, -1.0])

    def gathered(self, local: Tensor) -> tuple[Tensor, int]:
        """`[n, ...]` of every rank in rank order, differentiable, and the row where this rank's begin."""
        if self.process_group is None:
            return local, 0
        from pgdpo.objectives.gather import all_gather

        return all_gather(local, self.process_group)

    def uniform(self, count: int, *, stream: str) -> Tensor:
        """`[B, count]` random numbers in [0, 1): a pair's own, by the seed, its id, its draw and the `stream`, which
        keeps uses apart; the same in any batch, on any rank, in a resumed run.

        Without `PairInfo.ids` and `.draw` they are by the pair's place and by how often numbers were drawn.
        """
        import torch

        keys = [f"{self.seed}/{pair}/{draw}/{stream}" for pair, draw in self._draws()]
        digests = (shake_256(key.encode()).digest(4 * count) for key in keys)
        # 24 bits each, as many as fp32 holds: none is rounded up to 1.
        numbers = [[word >> 8 for word in unpack(f"<{count}I", digest)] for digest in digests]
        return torch.tensor(numbers, dtype=torch.float32, device=self.error_chosen.device) / 2**24

    def _draws(self) -> Iterable[tuple[int, int]]:
        """(id, draw) of each pair."""
        if self.pairs.ids is not None and self.pairs.draw is not None:
            return zip(self._given("ids").tolist(), self._given("draw").tolist(), strict=True)
        draw = int(self.state.get("draws", 0))
        if self.learning():
            self.state["draws"] = draw + 1
        return ((place, draw) for place in range(len(self)))

    def learning(self) -> bool:
        """Whether state may move: it stands still where gradients are off, as in validation."""
        import torch

        return torch.is_grad_enabled()

    def has(self, name: str) -> bool:
        return getattr(self.pairs, name) is not None

    def info(self, name: str, *tail: int) -> Tensor:
        """A field of `PairInfo` as a detached float tensor `[B, *tail]` beside the errors.

        Raises InputError if it is of another shape.
        """
        value = self._given(name, *tail).detach()
        if self.compared is not None:
            return value.to(self.compared.pred.device).float()
        like = self.segments.policy_chosen
        return value.to(device=like.device, dtype=like.dtype)

    def _given(self, name: str, *tail: int) -> Tensor:
        """A field of `PairInfo` as it is. Raises InputError unless it is `[B, *tail]`."""
        value = getattr(self.pairs, name)
        if tuple(value.shape) != (len(self), *tail):
            shapes = f"{tuple(value.shape)}, expected {(len(self), *tail)}"
            raise InputError(f"objective `{self.name}`: PairInfo.{name} has shape {shapes}")
        return value


def with_scaled_gradient(value: Tensor, scale: Tensor | float) -> Tensor:
    """The same value, to the bit, whose gradient is multiplied by `scale`."""
    return value.detach() + scale * (value - value.detach())


def nll(logits: torch.Tensor) -> torch.Tensor:
    """l(z) = -log sigmoid(z), stable for any z."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(logits)
