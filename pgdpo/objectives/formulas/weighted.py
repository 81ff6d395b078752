"""DPO with a weight, a temperature or an offset per pair, from what the data knows about the pair."""

from __future__ import annotations

from math import log1p

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Needs, Option, beta, objective

_TAU = Option(1.0, "τ; default ours", above=0)


@objective(
    paper="MADPO, arXiv 2510.05342",
    summary="A reward model's margin weighs the pair: hard pairs more, easy ones less.",
    formula="w(h)·ℓ(z), w(h) = 2σ(k(h₀ − h))",
    confidence="ours",
    options={
        "beta": beta(auto=True),
        "threshold": Option(1.0, "h₀, where w = 1"),
        "sharpness": Option(1.0, "k", above=0),
    },
    needs=Needs(pairs=("reward_margin",)),
    note="The paper's w is another function of h with the same course.",
)
def madpo(batch: Batch, *, beta: float, threshold: float, sharpness: float) -> Terms:
    z = batch.logit(beta)
    weight = 2 * (sharpness * (threshold - batch.info("reward_margin"))).sigmoid()
    return Terms(weight * nll(z), z, stats={"madpo/weight": weight})


@objective(
    paper="Uncertainty-penalised DPO, arXiv 2410.20187",
    summary="Pairs whose label is uncertain count less.",
    formula="e^(−u/τ)·ℓ(z)",
    confidence="paper",
    options={"beta": beta(auto=True), "tau": _TAU},
    needs=Needs(pairs=("uncertainty",)),
)
def uncertainty_dpo(batch: Batch, *, beta: float, tau: float) -> Terms:
    z = batch.logit(beta)
    return Terms((-batch.info("uncertainty") / tau).exp() * nll(z), z)


@objective(
    paper="Adaptive-DPO (minority-aware)",
    summary="A minority's samples weigh less; they are asked for a larger margin.",
    formula="e^(−u/τ)·ℓ(z − γu)",
    confidence="ours",
    options={
        "beta": beta(),
        "tau": _TAU,
        "gamma": Option(1.0, "γ; default ours", least=0),
    },
    needs=Needs(pairs=("uncertainty",)),
    note="u comes from the mean and variance of σ(z) over models or over time.",
)
def adaptive_dpo(batch: Batch, *, beta: float, tau: float, gamma: float) -> Terms:
    uncertainty = batch.info("uncertainty")
    z = batch.logit(beta)
    return Terms((-uncertainty / tau).exp() * nll(z - gamma * uncertainty), z)


@objective(
    paper="VideoDPO, arXiv 2412.14167",
    summary="Pairs with a rare score gap weigh more.",
    formula="(0.72/p)^b·ℓ(z)",
    confidence="code",
    options={"beta": beta(auto=True), "rarity_power": Option(1.0, "b; default ours", least=0)},
    needs=Needs(pairs=("gap_frequency",)),
    note="p, clamped at 1e-3, is the share of all pairs whose score gap lies in the same of equal bins: "
    "data.weight {by: gap_frequency, score: NAME} counts it from the rows' `scores`; 10 bins are ours.",
    trained_with=("data.weight={by: gap_frequency, score: total, bins: 4}",),
)
def video_dpo(batch: Batch, *, beta: float, rarity_power: float) -> Terms:
    z = batch.logit(beta)
    weight = (0.72 / batch.info("gap_frequency").clamp_min(1e-3)) ** rarity_power
    return Terms(weight * nll(z), z, stats={"video_dpo/weight": weight})


@objective(
    paper="PhyGDPO",
    summary="Physics and semantics weigh the pair: their scores scale the logit; a heuristic.",
    formula="γ_j·ℓ(α_j·z)",
    confidence="paper",
    options={"beta": beta()},
    needs=Needs(pairs=("reward_margin",)),
    note="α_j is PairInfo.reward_margin, γ_j is PairInfo.weight.",
)
def phygdpo(batch: Batch, *, beta: float) -> Terms:
    z = batch.info("reward_margin") * batch.logit(beta)
    return Terms(nll(z), z)


@objective(
    paper="SmPO-Diffusion, arXiv 2506.02698",
    summary="A soft preference scales the logit: a reward model's; the target comes from inversion.",
    formula="ℓ((2p̃−1)·γ·z)",
    confidence="code",
    options={"beta": beta(2000.0), "gamma": Option(10.0, "γ", above=0)},
    needs=Needs(
        pairs=("probability",),
        soft=True,
        noisy="inverted",
        data="noisy latents and target from DDIM inversion",
    ),
    note="Each pair's own p̃; the public code takes the first pair's for the whole batch. At p̃ = 1 it is inpo "
    "with γ times the β, so hard labels are refused. The paper inverts by ReNoise, which refines each step by "
    "fixed-point iterations: that is missing here, plain DDIM inversion stands in its place.",
    trained_with=("diffusion.inversion_steps=2",),
)
def smpo(batch: Batch, *, beta: float, gamma: float) -> Terms:
    z = (2 * batch.info("probability") - 1) * gamma * batch.logit(beta)
    return Terms(nll(z), z)


@objective(
    paper="SDPO/SIPO (importance-sampled), arXiv 2505.21893",
    summary="Importance weights per step, clipped; uninformative timesteps are masked.",
    formula="1[t]·sg clip(e^(κ(r_w+r_l)/2), 1±ε)·ℓ(z)",
    confidence="ours",
    options={
        "beta": beta(),
        "epsilon": Option(0.2, "ε; default ours", above=0, below=1),
        "min_timestep": Option(0.0, "timesteps below have no loss", least=0),
        "max_timestep": Option(1000.0, "timesteps above have no loss", least=0),
    },
    needs=Needs(pairs=("timestep",)),
)
def sipo(batch: Batch, *, beta: float, epsilon: float, min_timestep: float, max_timestep: float) -> Terms:
    z, timestep = batch.logit(beta), batch.info("timestep")
    log_ratio = 0.5 * batch.kappa(beta) * (batch.reward_chosen + batch.reward_rejected)
    importance = log_ratio.clamp(log1p(-epsilon), log1p(epsilon)).exp().detach()
    kept = ((timestep >= min_timestep) & (timestep <= max_timestep)).to(z.dtype)
    return Terms(kept * importance * nll(z), z, stats={"sipo/importance": importance})


@objective(
    paper="β-DPO, arXiv 2407.08639",
    summary="β follows the batch's gap: against its running mean; outlying gaps are left out.",
    formula="ℓ(z·clamp(1 + a(mean z − M), 0.01)), over the share ρ of pairs nearest to M, M the EMA of z",
    confidence="code",
    pools=True,
    options={
        "beta": beta(),
        "sensitivity": Option(0.6, "a", least=0),
        "momentum": Option(0.9, "of the EMA", least=0, below=1),
        "keep": Option(0.8, "ρ, share of the pairs kept", above=0, most=1),
    },
    note="The public code draws the pairs by their Gaussian weight; here those of the largest are kept. "
    "Gaps are measured in logits; the EMA starts at the first batch.",
)
def beta_dpo(batch: Batch, *, beta: float, sensitivity: float, momentum: float, keep: float) -> Terms:
    z = batch.logit(beta)
    gaps, start = batch.gathered(z.detach())
    mean, spread = gaps.mean(), gaps.std(correction=0)
    if "mean" in batch.state:
        mean = momentum * batch.state["mean"] + (1 - momentum) * mean
        spread = momentum * batch.state["spread"] + (1 - momentum) * spread
    if batch.learning():
        batch.state.update(mean=mean, spread=spread)
    distance = (gaps - mean).abs()  # the Gaussian weight falls with it
    kept = max(1, int(keep * len(gaps)))
    near = distance.argsort(stable=True)[:kept]
    factor = (1 + sensitivity * (gaps[near].mean() - mean)).clamp_min(0.01)
    chosen = gaps.new_zeros(len(gaps)).index_fill(0, near, len(gaps) / kept)[start : start + len(batch)]
    stats = {"beta_dpo/beta": factor * beta, "beta_dpo/spread": spread, "beta_dpo/kept": chosen}
    return Terms(chosen * nll(factor * z), z, stats=stats)
