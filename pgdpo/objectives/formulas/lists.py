"""Listwise and groupwise objectives: on whole groups of samples of one prompt. A pair is a list of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.messages.errors import InputError
from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, beta, objective

if TYPE_CHECKING:
    from torch import Tensor

NEVER = float("-inf")
LIST_OF_TWO = {"samples": "each pair is a list of two, which is dpo"}


def not_before(places: Tensor) -> Tensor:
    """`[B, K, K]`: whether sample j is no better than sample i."""
    return places[:, None, :] >= places[:, :, None]


def by_reward(batch: Batch) -> Tensor:
    """`[B, K]`: of each sample the place by its reward, 0 the best."""
    reward = batch.of_each("reward")
    return (reward[:, None, :] > reward[:, :, None]).sum(2).to(reward)


def log_share(score: Tensor, among: Tensor) -> Tensor:
    """`[B, K]`: log of the sum of e^score over the samples that stand `among` (`[B, K, K]`) each one's."""
    return score[:, None, :].masked_fill(~among, NEVER).logsumexp(2)


@objective(
    paper="Diffusion-LPO (listwise)",
    summary="Plackett–Luce over a ranked list; a list of two is DPO.",
    formula="−Σ_j [κr_j − LSE_{k≥j} κr_k]",
    confidence="notes",
    groups=True,
    without=LIST_OF_TWO,
    options={"beta": beta()},
    note="Lists of up to 8 in the paper. Samples of one rank compete with each other.",
)
def lpo(batch: Batch, *, beta: float) -> Terms:
    score = batch.scores(beta)
    rest = log_share(score, not_before(batch.places))
    return Terms((rest - score).sum(1), batch.logit(beta))


@objective(
    paper="GDRO",
    summary="Plackett–Luce against a soft target: from the rewards, with a fit of the best sample.",
    formula="Σ_i [LSE_{j≥i} κr_j − Σ_{j≥i} q_i(j)·κr_j] + γ·E_p of the best, q_i = softmax_{j≥i}(reward/τ)",
    confidence="notes",
    groups=True,
    options={
        "beta": beta(),
        "tau": Option(0.05, "τ", above=0),
        "gamma": Option(1.0, "γ; default ours", least=0),
    },
    needs=Needs(pairs=("reward",)),
    note="Groups of 6 in the paper.",
)
def gdro(batch: Batch, *, beta: float, tau: float, gamma: float) -> Terms:
    score, places = batch.scores(beta), by_reward(batch)
    after = not_before(places)
    wanted = (batch.of_each("reward") / tau)[:, None, :].masked_fill(~after, NEVER).softmax(2)  # (B, K, K)
    per_sample = log_share(score, after) - (wanted * score[:, None, :]).sum(2)
    per_sample = per_sample + gamma * batch.each("policy") * (places == 0)
    return Terms(per_sample.sum(1), batch.logit(beta))


@objective(
    paper="RankDPO, arXiv 2410.18013",
    summary="All ordered pairs of a list, by DCG: weighed by what swapping them costs in it.",
    formula="Σ_{i≻j} |G_i−G_j|·|1/log(1+τ_i) − 1/log(1+τ_j)|·ℓ(κ(r_i − r_j)), G = 2^reward − 1",
    confidence="paper",
    groups=True,
    options={"beta": beta()},
    needs=Needs(pairs=("reward",)),
    note="τ is the place in the list by reward, from 1; rewards of order 1 (the paper: five reward models).",
)
def rank_dpo(batch: Batch, *, beta: float) -> Terms:
    def apart(values: Tensor) -> Tensor:
        """`[B, K, K]`: sample i's less sample j's."""
        return values[:, :, None] - values[:, None, :]

    places = by_reward(batch)
    swap = apart(batch.of_each("reward").exp2()).abs() * apart(1 / (places + 2).log()).abs()
    losses = swap * nll(apart(batch.scores(beta)))
    better = apart(places) < 0
    return Terms(losses.where(better, 0.0).sum((1, 2)), batch.logit(beta))


@objective(
    paper="ADPO (anchored)",
    summary="A soft target over a list: its cross entropy with the policy's softmax of rewards.",
    formula="−Σ_i q_i·log softmax_i(κr)",
    confidence="ours",
    groups=True,
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
def adpo(batch: Batch, *, beta: float, target: str, tau: float) -> Terms:
    score = batch.scores(beta)
    if target == "reward":
        wanted = (batch.of_each("reward") / tau).softmax(1)
    elif batch.size == 2:
        probability = batch.info("probability")[:, None]
        wanted = probability * score.new_tensor([1.0, -1.0]) + score.new_tensor([0.0, 1.0])
    else:
        raise InputError(
            f"objective `adpo`: the target `probability` is a pair's, these are groups of {batch.size}: set target to "
            "`reward`"
        )
    return Terms((wanted * -score.log_softmax(1)).sum(1), batch.logit(beta))


@objective(
    paper="DGPO, arXiv 2510.08425",
    summary="Advantages of a group weigh the errors; the group's own state weighs the whole.",
    formula="mean_i sg[σ(Σ_j A_j·β·e_j/G)]·A_i·E_p,i",
    confidence="code",
    groups=True,
    options={"beta": beta(100.0)},
    needs=Needs(pairs=("advantage",)),
    note="β itself, without the half. Groups of 24 in the paper. An advantage that no sample has is its score's: less "
    "the group's mean, over its standard deviation. Not bounded below.",
)
def dgpo(batch: Batch, *, beta: float) -> Terms:
    advantage = batch.of_each("advantage")
    pull = advantage * batch.scaled(beta)[:, None] * batch.each("excess")
    total = pull.detach().mean(1)  # (B,)
    per_group = total.sigmoid() * (advantage * batch.each("policy")).mean(1)
    return Terms(per_group, -total, stats={"dgpo/weight": total.sigmoid().mean()})
