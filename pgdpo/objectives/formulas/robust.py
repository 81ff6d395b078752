"""Objectives for noisy labels: smoothing, its unbiased form, and a Bernoulli target for the policy."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

from pgdpo.objectives.batch import Batch, Terms, nll
from pgdpo.objectives.spec import Option, beta, objective

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = Option(
    0.1, "ε, share of wrong labels; PairInfo's takes its place; default ours", least=0, below=0.5
)


@objective(
    paper="Conservative DPO, Mitchell 2023",
    summary="Label smoothing: a share ε of the labels is taken to be wrong.",
    formula="(1−ε)ℓ(z) + εℓ(−z)",
    confidence="code",
    options={"beta": beta(auto=True), "label_smoothing": _EPSILON},
)
def cdpo(batch: Batch, *, beta: float, label_smoothing: float) -> Terms:
    z, eps = batch.logit(beta), _smoothing(batch, label_smoothing)
    return Terms((1 - eps) * nll(z) + eps * nll(-z), z)


@objective(
    paper="Provably robust DPO, arXiv 2403.00409",
    summary="DPO unbiased under wrong labels: the estimate of its loss when a share ε of them is wrong.",
    formula="[(1−ε)ℓ(z) − εℓ(−z)]/(1−2ε)",
    confidence="code",
    options={"beta": beta(auto=True), "label_smoothing": _EPSILON},
    note="Unbounded below when ε > 0.",
)
def rdpo(batch: Batch, *, beta: float, label_smoothing: float) -> Terms:
    z, eps = batch.logit(beta), _smoothing(batch, label_smoothing)
    return Terms(((1 - eps) * nll(z) - eps * nll(-z)) / (1 - 2 * eps), z)


@objective(
    paper="EXO, arXiv 2402.00856",
    summary="Reverse KL to the smoothed label; of the policy's preference.",
    formula="KL(σ(z) ‖ 1−ε)",
    confidence="code",
    options={"beta": beta(auto=True), "label_smoothing": Option(1e-3, "ε", above=0, below=0.5)},
)
def exo(batch: Batch, *, beta: float, label_smoothing: float) -> Terms:
    z = batch.logit(beta)
    return Terms(bernoulli_kl(z, label_smoothing), z)


@objective(
    paper="DMPO (divergence minimisation)",
    summary="EXO's divergence, stated for diffusion.",
    formula="KL(σ(z) ‖ 1−a)",
    confidence="code",
    options={
        "beta": beta(auto=True),
        "a": Option(0.01, "target probability of the wrong order", above=0, below=0.5),
    },
)
def dmpo(batch: Batch, *, beta: float, a: float) -> Terms:
    z = batch.logit(beta)
    return Terms(bernoulli_kl(z, a), z)


def bernoulli_kl(z: Tensor, a: float) -> Tensor:
    """KL(p ‖ q) of Bernoullis with p = sigmoid(z), q = 1 - a."""
    agree = z.sigmoid() * (-nll(z) - log(1 - a))
    differ = (-z).sigmoid() * (-nll(-z) - log(a))
    return agree + differ


def _smoothing(batch: Batch, option: float) -> Tensor | float:
    return batch.info("label_smoothing") if batch.has("label_smoothing") else option
