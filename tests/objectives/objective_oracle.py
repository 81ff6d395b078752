"""Every objective restated in numpy float64 from its paper's formula; no code of `pgdpo.objectives` in it.

A row is `formula(x, sg, o, info) -> [B]`: `x` holds the errors, `sg` the same numbers behind a stop-gradient
(a finite difference moves `x` alone), `o` the options, `info` the pair's data as arrays.
"""

from __future__ import annotations

import numpy as np


class Errors:
    """Errors per segment `[B, S]` and their count-weighted means `[B]`, under the formulas' names."""

    FIELDS = ("E_pw", "E_pl", "e_w", "e_l", "D_w", "D_l")

    def __init__(self, segments: dict[str, np.ndarray], count: np.ndarray):
        self.segments, self.count = segments, count
        share = count / count.sum(1, keepdims=True)
        for name in self.FIELDS:
            setattr(self, name, (segments[name] * share).sum(1))
        self.r_w, self.r_l = -self.e_w, -self.e_l
        self.m = self.r_w - self.r_l


def sigma(z):
    return 1 / (1 + np.exp(-z))


def ell(z):
    return -np.log(sigma(z))


def omega(x, info):
    return info.get("timestep_weight", np.ones(len(x.m)))


def kappa(x, o, info, key="beta"):
    return 0.5 * o[key] * omega(x, info)


def zed(x, o, info):
    return kappa(x, o, info) * x.m


def sft(x, sg, o, info):
    return x.E_pw if o["on"] == "chosen" else (x.E_pw + x.E_pl) / 2


def dpo(x, sg, o, info):
    return ell(zed(x, o, info))


def npo(x, sg, o, info):
    return ell(-zed(x, o, info))


def ipo(x, sg, o, info):
    return (omega(x, info) * x.m - 1 / (2 * o["beta"])) ** 2


def hinge(x, sg, o, info):
    return np.maximum(0, 1 - zed(x, o, info))


def pg_dpo(x, sg, o, info):
    def sides(v):
        if o["segments"] == "pooled":
            return v.r_w, v.r_l, v.E_pw
        s, seg = info["segment_labels"], v.segments
        won = np.where(s > 0, -seg["e_w"], np.where(s < 0, -seg["e_l"], 0)).sum(1)
        lost = np.where(s > 0, -seg["e_l"], np.where(s < 0, -seg["e_w"], 0)).sum(1)
        return won, lost, np.where(s > 0, seg["E_pw"], np.where(s < 0, seg["E_pl"], 0)).sum(1)

    w, k = omega(x, info), kappa(x, o, info)
    r_w, r_l, fit = sides(x)
    if o["ars"] == "none":
        alpha = 1.0
    else:
        scores = [w * sides(sg)[0], w * sides(sg)[1]] if o["reward"] == "implicit" else info["reward"].T
        ratio = o["ars_k"] * (scores[0] - scores[1]) / (np.abs(scores[1]) + o["ars_eps"])
        alpha = sigma(np.clip(ratio, -o["ars_clip"], o["ars_clip"]))
    if o["ipr_form"] == "switch":
        scores = [w * sides(sg)[0], w * sides(sg)[1]]
        ratio = o["ipr_sharpness"] * (scores[0] - scores[1]) / (np.abs(scores[0]) + o["ars_eps"])
        switch = sigma(np.clip(ratio, -o["ars_clip"], o["ars_clip"]))
        return ell(k * (r_w - alpha * (1 - o["ipr_weight"] * switch) * r_l))
    z = k * (r_w - alpha * r_l)
    frozen = k * (sides(sg)[0] - alpha * sides(sg)[1])
    gate = sigma(o["ipr_sharpness"] * (frozen - o["ipr_threshold"]))
    kept = {"bt": ell(k * r_w), "hinge": np.maximum(0, -w * r_w), "sft": fit}[o["ipr_form"]]
    return ell(z) + o["ipr_weight"] * gate * kept


def dense_dpo(x, sg, o, info):
    gains = info["segment_labels"] * (x.segments["e_l"] - x.segments["e_w"])
    if o["form"] == "inside":
        return ell(kappa(x, o, info) * gains.sum(1))
    return ell(kappa(x, o, info)[:, None] * gains).mean(1)


def smoothing(o, info):
    return info.get("label_smoothing", o["label_smoothing"])


def cdpo(x, sg, o, info):
    z, eps = zed(x, o, info), smoothing(o, info)
    return (1 - eps) * ell(z) + eps * ell(-z)


def rdpo(x, sg, o, info):
    z, eps = zed(x, o, info), smoothing(o, info)
    return ((1 - eps) * ell(z) - eps * ell(-z)) / (1 - 2 * eps)


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def exo(x, sg, o, info):
    return bernoulli_kl(sigma(zed(x, o, info)), 1 - o["label_smoothing"])


def dmpo(x, sg, o, info):
    return bernoulli_kl(sigma(zed(x, o, info)), 1 - o["a"])


def simpo(x, sg, o, info):
    return ell(kappa(x, o, info) * (x.E_pl - x.E_pw) - o["gamma"])


def dpop(x, sg, o, info):
    return ell(kappa(x, o, info) * (x.m - o["penalty"] * np.maximum(0, x.e_w)))


def cal_dpo(x, sg, o, info):
    half = 1 / (2 * o["beta"])
    return ell(zed(x, o, info)) + (x.r_w - half) ** 2 + (x.r_l + half) ** 2


def nca(x, sg, o, info):
    a, b = kappa(x, o, info) * x.r_w, kappa(x, o, info) * x.r_l
    return ell(a) + ell(-a) / 2 + ell(-b) / 2


def bco(x, sg, o, info):
    shift = np.concatenate([kappa(sg, o, info) * sg.r_w, kappa(sg, o, info) * sg.r_l]).mean()
    return ell(kappa(x, o, info) * x.r_w - shift) + ell(-(kappa(x, o, info) * x.r_l - shift))


def sppo(x, sg, o, info):
    half = 1 / (2 * o["beta"])
    return (x.r_w - half) ** 2 + (x.r_l + half) ** 2


def apo_zero(x, sg, o, info):
    return 1 - sigma(kappa(x, o, info) * x.r_w) + sigma(kappa(x, o, info) * x.r_l)


def apo_down(x, sg, o, info):
    return sigma(kappa(x, o, info) * x.r_w) + 1 - sigma(zed(x, o, info))


def discopop(x, sg, o, info):
    z = zed(x, o, info)
    mu = sigma(z / o["tau"])
    return (1 - mu) * ell(z) + mu * np.exp(-z)


def aot(x, sg, o, info):
    a, b = kappa(x, o, info) * x.r_w, kappa(x, o, info) * x.r_l
    losses = np.empty(len(a))
    losses[np.argsort(a)] = ell(np.sort(a) - np.sort(b))
    return losses


def f_dpo(x, sg, o, info):
    g = {
        "reverse_kl": lambda r: r,
        "forward_kl": lambda r: -np.exp(-r),
        "js": lambda r: np.log(sigma(r)),
        "alpha": lambda r: -np.exp(-o["alpha"] * r) / o["alpha"],
    }[o["divergence"]]
    return ell(kappa(x, o, info) * (g(x.r_w) - g(x.r_l)))


def madpo(x, sg, o, info):
    return 2 * sigma(o["sharpness"] * (o["threshold"] - info["reward_margin"])) * ell(zed(x, o, info))


def beta_dpo(x, sg, o, info):
    gaps = zed(sg, o, info)
    center = gaps.mean()
    weight = np.exp(-0.5 * ((gaps - center) / gaps.std()) ** 2)
    number = max(1, int(o["keep"] * len(gaps)))
    kept = np.argsort(-weight)[:number]
    factor = max(0.01, 1 + o["sensitivity"] * (gaps[kept].mean() - center))
    mask = np.zeros(len(gaps))
    mask[kept] = len(gaps) / number
    return mask * ell(factor * zed(x, o, info))


def asft(x, sg, o, info):
    p_w, p_l = np.exp(-kappa(x, o, info) * x.E_pw), np.exp(-kappa(x, o, info) * x.E_pl)
    return ell(np.log(p_w / (1 - p_w))) + ell(-np.log(p_l / (1 - p_l)))


def sgdpo(x, sg, o, info):  # subset = 1: the estimate is the sample's own reward
    k = kappa(x, o, info)
    return ell(k * (x.r_w - sg.r_l)) / 2 + ell(k * (sg.r_w - x.r_l)) / 2


def balanced_dpo(x, sg, o, info):
    scale = np.clip(np.sqrt(sg.E_pl / sg.E_pw), 1 / o["limit"], o["limit"])
    return ell(kappa(x, o, info) * (sg.r_w + scale * (x.r_w - sg.r_w) - x.r_l))


def uncertainty_dpo(x, sg, o, info):
    return np.exp(-info["uncertainty"] / o["tau"]) * ell(zed(x, o, info))


def flex_dpo(x, sg, o, info):
    return ell(kappa(x, o, info, "beta_chosen") * x.r_w - kappa(x, o, info, "beta_rejected") * x.r_l)


def reg_dpo(x, sg, o, info):
    return ell(zed(x, o, info)) + o["sft_weight"] * x.E_pw


def ld_dpo(x, sg, o, info):
    weight = x.count / x.count.sum(1, keepdims=True)
    shared = (weight * (1 - info["tail"]) * (x.segments["e_l"] - x.segments["e_w"])).sum(1)
    tail = (weight * info["tail"] * (x.segments["e_l"] - x.segments["e_w"])).sum(1)
    return ell(kappa(x, o, info) * (shared + o["alpha"] * tail))


def kto(x, sg, o, info):
    y = info.get("label", np.tile([1.0, -1.0], (len(x.m), 1)))
    r, frozen = np.stack([x.r_w, x.r_l], 1), np.stack([sg.r_w, sg.r_l], 1)
    z0 = max(0, frozen[y != 0].mean())
    h = sigma(y * o["beta"] * omega(x, info)[:, None] * (r - z0))
    weight = np.where(y > 0, o["desirable_weight"], np.where(y < 0, o["undesirable_weight"], 0))
    return (weight * (1 - h)).sum(1) / np.maximum(1, (y != 0).sum(1))


def mapo(x, sg, o, info):
    def f(error):
        return o["s"] * error / (np.exp(o["s"] * error) - 1)

    return x.E_pw + o["weight"] * ell(o["horizon"] * (f(x.E_pw) - f(x.E_pl)))


def dspo(x, sg, o, info):
    c = o["beta"] * omega(x, info) * (1 - sigma(zed(x, o, info)))
    reference = x.E_pw - x.e_w
    product = (x.E_pw + reference - x.D_w) / 2
    return (1 - c) ** 2 * x.E_pw + 2 * c * (1 - c) * product + c**2 * reference


def smpo(x, sg, o, info):
    return ell(kappa(x, o, info) * (2 * info["probability"] - 1) * o["gamma"] * x.m)


def inversion_dpo(x, sg, o, info):
    sign = {"policy": 1, "reference": -1}[o["inverted_by"]]
    return ell(sign * kappa(x, o, info) * (x.D_w - x.D_l))


def pso(x, sg, o, info):
    u = -kappa(x, o, info) * (x.E_pw - o["nu"] * x.E_pl)
    return (ell(u) if o["form"] == "sigmoid" else np.maximum(0, 1 - u)) + o["weight"] * x.E_pl


def phygdpo(x, sg, o, info):
    return ell(info["reward_margin"] * zed(x, o, info))


def dro(x, sg, o, info):
    if o["form"] == "direct":
        return np.maximum(x.E_pw - x.E_pl, -o["margin"])
    return np.maximum(0, x.e_w - x.e_l + o["margin"])


def linear_dpo(x, sg, o, info):
    slope = np.clip(0.5 - 0.2 * o["beta"] * omega(x, info) * sg.m, o["eta"], 1 - o["eta"])
    return slope * (x.E_pw - x.E_pl)


def local_dpo(x, sg, o, info):
    inside = info["masked"]
    z_mask = kappa(x, o, info) * (inside.r_w - inside.r_l)
    fits = o["mask_sft"] * inside.E_pw + o["full_sft"] * x.E_pw
    return o["full_weight"] * ell(zed(x, o, info)) + o["mask_weight"] * ell(z_mask) + fits


def video_dpo(x, sg, o, info):
    return (0.72 / info["gap_frequency"]) ** o["rarity_power"] * ell(zed(x, o, info))


def poly_dpo(x, sg, o, info):
    z = zed(x, o, info)
    return ell(z) + o["alpha"] * (1 - sigma(z))


def capo(x, sg, o, info):
    return (zed(x, o, info) - info["reward_margin"]) ** 2


def spo(x, sg, o, info):
    ratios = [np.exp(info["timestep_weight"] * r) for r in (x.r_w, x.r_l)]
    chosen, rejected = (np.log(np.clip(ratio, 1 - o["epsilon"], 1 + o["epsilon"])) for ratio in ratios)
    return ell(o["beta"] * (chosen - rejected))


def tailor_dpo(x, sg, o, info):
    return ell(o["beta"] * info["timestep_weight"] * (x.r_w - x.r_l))


def adaptive_dpo(x, sg, o, info):
    u = info["uncertainty"]
    return np.exp(-u / o["tau"]) * ell(zed(x, o, info) - o["gamma"] * u)


def sipo(x, sg, o, info):
    ratio = np.exp(kappa(sg, o, info) * (sg.r_w + sg.r_l) / 2)
    inside = (info["timestep"] >= o["min_timestep"]) & (info["timestep"] <= o["max_timestep"])
    return inside * np.clip(ratio, 1 - o["epsilon"], 1 + o["epsilon"]) * ell(zed(x, o, info))
