"""What an objective sees of a batch, and what it gives back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import shake_256
from struct import unpack
from typing import TYPE_CHECKING, Any

from pgdpo.messages.errors import InputError
from pgdpo.objectives.info import PairInfo
from pgdpo.objectives.pairing import ends_of, places_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from pgdpo.objectives.compared import Compared
    from pgdpo_kernels import GroupErrors, PairErrors, PreferenceLoss


SIDES = ("chosen", "rejected")


@dataclass
class Terms:
    """What an objective's formula gives, before weights and modifiers."""

    losses: Tensor  # [B] of each pair or group, differentiable
    logits: Tensor  # [B] the logit: > 0 where the policy agrees with the label
    reward_chosen: Tensor | None = None  # [B] implicit reward before beta; by default -excess
    reward_rejected: Tensor | None = None
    excess_better: Tensor | None = None  # [B] what `chosen_pull` pulls down; by default the chosen's excess
    limited: bool = False  # `logit_cap` and `chosen_pull` are in it, by `Batch.preference`
    stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Batch:
    """Errors of pairs, or of groups, under the names of the formulas.

    r_w = `reward_chosen`, r_l = `reward_rejected`, m = `margin`, e_w = `excess_chosen`,
    E_pw = `error_chosen`, D_w = `drift_chosen`; all `[B]`, over all segments. `segments` keeps the errors
    per segment, `[B, S]`. Where there are predictions in their place (`compared`), `preference` makes them.

    Formulas of groups read `each`, `[B, K]`; of a pair these are chosen and rejected. Chosen and rejected of a group
    are its best and its worst sample.
    """

    name: str
    segments: PairErrors | GroupErrors | None
    pairs: PairInfo
    state: dict[str, Any]  # of this objective, kept from batch to batch
    process_group: ProcessGroup | None = None
    seed: int = 0
    compared: Compared | None = None
    whole: PreferenceLoss | None = None  # what was made of `compared`, with the pairs' weights in it
    limits: Mapping[str, float] = field(default_factory=dict)  # of `modifiers.LIMITS` those that are given

    @functools.cached_property
    def pooled(self) -> PairErrors | GroupErrors:
        return self.segments.over_segments()

    @property
    def shape(self) -> tuple[int, int]:
        """Groups, or pairs, and segments, (B, S)."""
        if self.compared is not None:
            return self.compared.shape
        if self.grouped:
            samples, segments = self.segments.policy.shape
            return samples // self.segments.groups, segments
        return tuple(self.segments.policy_chosen.shape)

    @property
    def grouped(self) -> bool:
        """Whether these are errors of groups, member by member."""
        return self.segments is not None and hasattr(self.segments, "groups")

    @property
    def size(self) -> int:
        """Samples of a group, K."""
        return self.segments.groups if self.grouped else 2

    def each(self, name: str) -> Tensor:
        """`policy`, `ref`, `excess` or `drift` of every sample, `[B, K]`."""
        import torch

        if self.grouped:
            return getattr(self.pooled, name)[:, 0].reshape(self.size, -1).T
        return torch.stack([getattr(self.pooled, f"{name}_{side}")[:, 0] for side in SIDES], 1)

    @functools.cached_property
    def places(self) -> Tensor:
        """`[B, K]`: of each sample the place in its group, 0 the best; equal ones are ties."""
        if not self.grouped:
            return self.error_chosen.new_tensor([0.0, 1.0]).expand(len(self), 2)
        return places_of(self.pairs, len(self), self.size, self.pooled.policy.detach())

    def _of(self, name: str, side: str) -> Tensor:
        """One side's, `[B]`."""
        if not self.grouped:
            return getattr(self.pooled, f"{name}_{side}")[:, 0]
        place = ends_of(self.places)[SIDES.index(side)]
        return self.each(name).gather(1, place[:, None])[:, 0]

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
        return self._of("policy", "chosen")

    @property
    def error_rejected(self) -> Tensor:
        return self._of("policy", "rejected")

    @property
    def excess_chosen(self) -> Tensor:
        return self._of("excess", "chosen")

    @property
    def excess_rejected(self) -> Tensor:
        return self._of("excess", "rejected")

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
        return self._of("drift", "chosen")

    @property
    def drift_rejected(self) -> Tensor:
        return self._of("drift", "rejected")

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

    def scores(self, beta: float) -> Tensor:
        """kappa * r of every sample, `[B, K]`."""
        return -self.kappa(beta)[:, None] * self.each("excess")

    def logit(self, beta: float) -> Tensor:
        """z = kappa * m."""
        return self.kappa(beta) * self.margin

    def with_excess(self, chosen: Tensor, rejected: Tensor) -> Batch:
        """The same pairs with another excess over the reference, `[B, S]` each."""
        return replace(self, segments=replace(self.segments, excess_chosen=chosen, excess_rejected=rejected))

    def segment_labels(self) -> Tensor:
        """`[B, S]` of -1, 0, +1."""
        return self.info("segment_labels", self.shape[1])

    def of_each(self, name: str) -> Tensor:
        """A field of samples, `[B, K]`; of a pair it may also be `[B]`: the rejected then has its negative."""
        if getattr(self.pairs, name).dim() > 1 or self.size != 2:
            return self.info(name, self.size)
        signed = self.info(name)
        return signed[:, None] * signed.new_tensor([1.0, -1.0])

    def gathered(self, local: Tensor) -> tuple[Tensor, int]:
        """`[n, ...]` of every rank in rank order, differentiable, and the row where this rank's begin; ranks may have
        unequally many."""
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
        like = self.segments.policy if self.grouped else self.segments.policy_chosen
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
