"""The oracle's rows over lists of samples, as plain loops over one list at a time.

A row is `formula(one, frozen, o) -> loss` of one list: `one` has `s` (kappa r), `E`, `e` and what the data say of its
samples (`rank`, `reward`, `advantage`, `label`, `probability`), each an array `[K]`; `frozen` the same numbers behind a
stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from objective_oracle import ell, kappa, omega, sigma

SAMPLES = ("rank", "reward", "advantage", "label")


def lpo(one, frozen, o):
    order = sorted(range(len(one.s)), key=lambda i: one.rank[i])
    return sum(-(one.s[i] - np.log(sum(np.exp(one.s[k]) for k in order[j:]))) for j, i in enumerate(order))


def gdro(one, frozen, o):
    order = sorted(range(len(one.s)), key=lambda i: -one.reward[i])
    loss = o["gamma"] * one.E[order[0]]
    for place in range(len(order) - 1):
        rest = order[place:]
        q = np.array([np.exp(one.reward[j] / o["tau"]) for j in rest])
        q = q / q.sum()
        loss += np.log(sum(np.exp(one.s[j]) for j in rest)) - sum(q * [one.s[j] for j in rest])
    return loss


def rank_dpo(one, frozen, o):
    order = sorted(range(len(one.s)), key=lambda i: -one.reward[i])
    loss = 0.0
    for i, better in enumerate(order):
        for j in range(i + 1, len(order)):
            worse = order[j]
            gain = abs((2 ** one.reward[better] - 1) - (2 ** one.reward[worse] - 1))
            discount = abs(1 / np.log(1 + (i + 1)) - 1 / np.log(1 + (j + 1)))
            loss += gain * discount * ell(one.s[better] - one.s[worse])
    return loss


def adpo(one, frozen, o):
    if o["target"] == "reward":
        raw = np.exp(one.reward / o["tau"])
        q = raw / raw.sum()
    else:
        q = [one.probability, 1 - one.probability]
    total = sum(np.exp(one.s))
    return sum(-share * np.log(np.exp(score) / total) for share, score in zip(q, one.s, strict=True))


def dgpo(one, frozen, o):
    weight = sigma(
        sum(a * o["beta"] * one.omega * e for a, e in zip(one.advantage, frozen.e, strict=True)) / len(one.s)
    )
    return sum(weight * a * error for a, error in zip(one.advantage, one.E, strict=True)) / len(one.s)


def of_pairs(formula: Callable) -> Callable:
    """The row of pairs, which are lists of two: the chosen is the better one unless a reward orders them."""

    def row(x, sg, o, info):
        number = len(x.m)

        def lists(errors):
            s = kappa(errors, o, info)[:, None] * np.stack([errors.r_w, errors.r_l], 1)
            E, e = np.stack([errors.E_pw, errors.E_pl], 1), np.stack([errors.e_w, errors.e_l], 1)
            said = {name: info[name] for name in (*SAMPLES, "probability") if name in info}
            said["rank"] = np.tile([0.0, 1.0], (number, 1))
            w = omega(errors, info)
            return [
                SimpleNamespace(s=s[b], E=E[b], e=e[b], omega=w[b], **{n: v[b] for n, v in said.items()})
                for b in range(number)
            ]

        return np.array([formula(one, frozen, o) for one, frozen in zip(lists(x), lists(sg), strict=True)])

    return row
