"""The oracle's rows over lists and groups of samples, as plain loops."""

from __future__ import annotations

import numpy as np
from objective_oracle import ell, kappa, omega, sigma


def members(x, info):
    """Lists of (pair, side) by group, empty places left out."""
    number = len(x.m)
    group = info.get("group", np.arange(number))
    rank = info.get("rank", np.tile([0.0, 1.0], (number, 1)))
    everyone = [(b, s) for b in range(number) for s in (0, 1) if rank[b, s] >= 0]
    return [[(b, s) for b, s in everyone if group[b] == g] for g in dict.fromkeys(group)], rank


def share(x, groups, loss_of):
    """Losses of samples, summed per list, laid to their pairs so that the mean is the mean over lists."""
    number = len(x.m)
    losses = np.zeros(number)
    for group in groups:
        for (b, _), loss in loss_of(group):
            losses[b] += loss * number / len(groups)
    return losses


def rewards(x, o, info):
    return kappa(x, o, info)[:, None] * np.stack([x.r_w, x.r_l], 1)


def lpo(x, sg, o, info):
    groups, rank = members(x, info)
    s = rewards(x, o, info)

    def loss_of(group):
        order = sorted(group, key=lambda i: rank[i])
        for j, one in enumerate(order):
            yield one, -(s[one] - np.log(sum(np.exp(s[k]) for k in order[j:])))

    return share(x, groups, loss_of)


def gdro(x, sg, o, info):
    groups, _ = members(x, info)
    s, quality = rewards(x, o, info), info["reward"]
    errors = np.stack([x.E_pw, x.E_pl], 1)

    def loss_of(group):
        order = sorted(group, key=lambda i: -quality[i])
        yield order[0], o["gamma"] * errors[order[0]]
        for i, one in enumerate(order[:-1]):
            rest = order[i:]
            q = np.array([np.exp(quality[j] / o["tau"]) for j in rest])
            q = q / q.sum()
            yield one, np.log(sum(np.exp(s[j]) for j in rest)) - sum(q * [s[j] for j in rest])

    return share(x, groups, loss_of)


def rank_dpo(x, sg, o, info):
    groups, _ = members(x, info)
    s, quality = rewards(x, o, info), info["reward"]

    def loss_of(group):
        order = sorted(group, key=lambda i: -quality[i])
        for i, better in enumerate(order):
            for j in range(i + 1, len(order)):
                worse = order[j]
                gain = abs((2 ** quality[better] - 1) - (2 ** quality[worse] - 1))
                discount = abs(1 / np.log(1 + (i + 1)) - 1 / np.log(1 + (j + 1)))
                yield better, gain * discount * ell(s[better] - s[worse])

    return share(x, groups, loss_of)


def adpo(x, sg, o, info):
    groups, _ = members(x, info)
    s = rewards(x, o, info)

    def loss_of(group):
        if o["target"] == "reward":
            raw = {i: np.exp(info["reward"][i] / o["tau"]) for i in group}
            q = {i: value / sum(raw.values()) for i, value in raw.items()}
        else:
            p = info["probability"]
            q = {(b, side): p[b] if side == 0 else 1 - p[b] for b, side in group}
        total = sum(np.exp(s[i]) for i in group)
        for i in group:
            yield i, -q[i] * np.log(np.exp(s[i]) / total)

    return share(x, groups, loss_of)


def dgpo(x, sg, o, info):
    groups, _ = members(x, info)
    advantage = info["advantage"]
    pull = advantage * o["beta"] * omega(x, info)[:, None] * np.stack([sg.e_w, sg.e_l], 1)
    errors = np.stack([x.E_pw, x.E_pl], 1)
    losses, present = np.zeros(len(x.m)), np.zeros(len(x.m))
    for group in groups:
        weight = sigma(sum(pull[i] for i in group) / len(group))
        for i in group:
            losses[i[0]] += weight * advantage[i] * errors[i]
            present[i[0]] += 1
    return losses / np.maximum(1, present)
