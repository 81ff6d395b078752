"""Listwise and groupwise objectives.

A list is a set of samples of one prompt. Its samples stand in the chosen and rejected places of pairs that
share `PairInfo.group`, each sample once; `PairInfo.rank` orders them, a negative rank leaves a place empty.
Without groups each pair is a list of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, Spec, beta

if TYPE_CHECKING:
    from torch import Tensor

NEVER = float("-inf")


@dataclass
class Lists:
    """This rank's samples, `n` = 2B rows, against every rank's, `N` columns; each chosen half first."""

    batch: Batch
    place: Tensor  # [n] place in the list, 0 is best; negative: empty
    places: Tensor  # [N]
    same: Tensor  # [n, N] both present, in one list

    def columns(self, values: Tensor) -> Tensor:
        """`[B, 2]` of this rank -> `[N]` of all."""
        return flat(self.batch.gathered(values)[0])

    def not_before(self) -> Tensor:
        """`[n, N]`: in one list and not better. An empty place sees everything: its row stays finite."""
        return (self.same & (self.places >= self.place[:, None])) | (self.place < 0)[:, None]

    def per_pair(self, per_sample: Tensor) -> Tensor:
        """`[n]` -> `[B]`, whose mean over all pairs is the mean over all lists of the sum over a list."""
        present = self.place >= 0
        own = per_sample.where(present, 0.0).reshape(2, -1).sum(0)
        lists = (present / self.same.sum(1).clamp_min(1)).reshape(2, -1).sum(0)
        everyone, _ = self.batch.gathered(lists)
        return own * (len(everyone) / everyone.sum().clamp_min(1)).to(own.dtype)


def flat(values: Tensor) -> Tensor:
    """`[B, 2]` -> `[2B]`, chosen half first."""
    return values.transpose(0, 1).reshape(-1)


def by_rank(batch: Batch) -> Lists:
    """Lists in the order of `PairInfo.rank`; by default the chosen is the better of two."""
    import torch

    pairs = len(batch)
    rank = batch.info("rank", 2) if batch.has("rank") else batch.error_chosen.new_tensor([[0.0, 1.0]] * pairs)
    ranks, start = batch.gathered(rank)
    group = torch.arange(start, start + pairs, device=rank.device)
    if batch.has("group"):
        group = batch.pairs.group.to(rank.device)
    groups, _ = batch.gathered(group)
    place, places = flat(rank), flat(ranks)
    same = (group.repeat(2)[:, None] == groups.repeat(2)) & (place >= 0)[:, None] & (places >= 0)
    return Lists(batch, place, places, same)


def by_reward(batch: Batch) -> Lists:
    """Lists in the order of `PairInfo.reward`."""
    found = by_rank(batch)
    reward = batch.info("reward", 2)
    better = found.same & (found.columns(reward) > flat(reward)[:, None])
    found.place = better.sum(1).to(reward.dtype).where(found.place >= 0, -1.0)
    found.places = found.columns(found.place.reshape(2, -1).transpose(0, 1))
    return found


def scores(batch: Batch, beta: float) -> Tensor:
    """κr of both samples, `[B, 2]`."""
    import torch

    kappa = batch.kappa(beta)
    return torch.stack((kappa * batch.reward_chosen, kappa * batch.reward_rejected), 1)


def lpo(batch: Batch, *, beta: float) -> Terms:
    found, score = by_rank(batch), scores(batch, beta)
    rest = found.columns(score).masked_fill(~found.not_before(), NEVER).logsumexp(1)
    return Terms(found.per_pair(rest - flat(score)), score[:, 0] - score[:, 1])


def gdro(batch: Batch, *, beta: float, tau: float, gamma: float) -> Terms:
    import torch

    found, score = by_reward(batch), scores(batch, beta)
    column, after = found.columns(score), found.not_before()
    target = (found.columns(batch.info("reward", 2)) / tau).masked_fill(~after, NEVER).softmax(1)
    per_sample = column.masked_fill(~after, NEVER).logsumexp(1) - (target * column).sum(1)
    errors = torch.cat((batch.error_chosen, batch.error_rejected))
    per_sample = per_sample + gamma * errors * (found.place == 0)
    return Terms(found.per_pair(per_sample), score[:, 0] - score[:, 1])


def rank_dpo(batch: Batch, *, beta: float) -> Terms:
    found, score = by_reward(batch), scores(batch, beta)
    quality = batch.info("reward", 2)
    gain = (flat(quality).exp2()[:, None] - found.columns(quality).exp2()).abs()
    inverse, inverses = (1 / (place.clamp_min(0.0) + 2).log() for place in (found.place, found.places))
    discount = (inverse[:, None] - inverses).abs()
    better = found.same & (found.places > found.place[:, None])
    losses = gain * discount * nll(flat(score)[:, None] - found.columns(score))
    return Terms(found.per_pair(losses.where(better, 0.0).sum(1)), score[:, 0] - score[:, 1])


def adpo(batch: Batch, *, beta: float, target: str, tau: float) -> Terms:
    import torch

    found, score = by_rank(batch), scores(batch, beta)
    found.place = found.place.clamp_max(0.0)  # every sample is compared with its whole list
    found.places = found.places.clamp_max(0.0)
    outside = ~found.not_before()
    if target == "reward":
        quality = batch.info("reward", 2) / tau
        soft = (flat(quality) - found.columns(quality).masked_fill(outside, NEVER).logsumexp(1)).exp()
    else:
        probability = batch.info("probability")
        soft = torch.cat((probability, 1 - probability))
    total = found.columns(score).masked_fill(outside, NEVER).logsumexp(1)
    return Terms(found.per_pair(soft * (total - flat(score))), score[:, 0] - score[:, 1])


def dgpo(batch: Batch, *, beta: float) -> Terms:
    import torch

    found, advantage = by_rank(batch), batch.sided("advantage")
    excess = torch.stack((batch.excess_chosen, batch.excess_rejected), 1)
    pull = (advantage * batch.scaled(beta)[:, None] * excess).detach()  # (B, 2)
    total = (found.same * found.columns(pull)).sum(1) / found.same.sum(1).clamp_min(1)
    errors = torch.cat((batch.error_chosen, batch.error_rejected))
    present = (found.place >= 0).to(errors.dtype)
    per_sample = total.sigmoid() * flat(advantage) * errors * present
    per_pair = per_sample.reshape(2, -1).sum(0) / present.reshape(2, -1).sum(0).clamp_min(1)
    return Terms(per_pair, -total.reshape(2, -1).mean(0), stats={"dgpo/weight": total.sigmoid().mean()})


LPO = Spec(
    name="lpo",
    paper="Diffusion-LPO (listwise)",
    summary="Plackett–Luce over a ranked list; a list of two is DPO.",
    formula="−Σ_j [κr_j − LSE_{k≥j} κr_k]",
    confidence="notes",
    compute=lpo,
    pools=True,
    without={"group": "each pair is a list of two, which is dpo"},
    options={"beta": beta()},
    note="Lists of up to 8 from PairInfo.group and .rank; without them each pair is a list.",
)
GDRO = Spec(
    name="gdro",
    paper="GDRO",
    summary="Plackett–Luce against a soft target from the rewards, with a fit of the best sample.",
    formula="Σ_i [LSE_{j≥i} κr_j − Σ_{j≥i} q_i(j)·κr_j] + γ·E_p of the best, q_i = softmax_{j≥i}(reward/τ)",
    confidence="notes",
    compute=gdro,
    pools=True,
    options={
        "beta": beta(),
        "tau": Option(0.05, "τ", above=0),
        "gamma": Option(1.0, "γ; default ours", least=0),
    },
    needs=Needs(pairs=("reward",)),
    note="Groups of 6 in the paper.",
)
RANK_DPO = Spec(
    name="rank_dpo",
    paper="RankDPO, arXiv 2410.18013",
    summary="All ordered pairs of a list, weighed by what swapping them costs in DCG.",
    formula="Σ_{i≻j} |G_i−G_j|·|1/log(1+τ_i) − 1/log(1+τ_j)|·ℓ(κ(r_i − r_j)), G = 2^reward − 1",
    confidence="paper",
    compute=rank_dpo,
    pools=True,
    options={"beta": beta()},
    needs=Needs(pairs=("reward",)),
    note="τ is the place in the list by reward, from 1; rewards of order 1 (the paper: five reward models).",
)
ADPO = Spec(
    name="adpo",
    paper="ADPO (anchored)",
    summary="Cross entropy between a soft target over the list and the policy's softmax of rewards.",
    formula="−Σ_i q_i·log softmax_i(κr)",
    confidence="ours",
    compute=adpo,
    pools=True,
    options={
        "beta": beta(),
        "target": Option(
            "probability", "q: (p, 1−p) of a pair, or softmax(reward/τ)", choices=("probability", "reward")
        ),
        "tau": Option(1.0, "τ of the target; default ours", above=0),
    },
    needs_if={
        ("target", "probability"): Needs(pairs=("probability",), soft=True),
        ("target", "reward"): Needs(pairs=("reward",)),
    },
    note="The paper's temperature of the policy is 1/κ. With hard labels the target `probability` makes it dpo: they "
    "are refused.",
)
DGPO = Spec(
    name="dgpo",
    paper="DGPO, arXiv 2510.08425",
    summary="Advantages of a group weigh each sample's error; the group's own state weighs the whole.",
    formula="mean_i sg[σ(Σ_j A_j·β·e_j/G)]·A_i·E_p,i",
    confidence="code",
    compute=dgpo,
    pools=True,
    options={"beta": beta(100.0)},
    needs=Needs(pairs=("advantage",), data="groups (24 in the paper) with advantages"),
    note="β itself, without the half. Not bounded below.",
    trained_with=None,
)
