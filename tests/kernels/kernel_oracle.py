"""float64 oracles in NumPy. They share no code with the ops."""

from __future__ import annotations

import numpy as np
import torch

FIELDS = (
    "policy_chosen",
    "policy_rejected",
    "ref_chosen",
    "ref_rejected",
    "excess_chosen",
    "excess_rejected",
)
FIELDS += ("drift_chosen", "drift_rejected", "cross", "count")


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def pair_errors(pred, target, ref, index=None, frame_axis=2, mask=None) -> dict[str, np.ndarray]:
    """Every field of PairErrors, `[B, S]`; `mask` broadcasts to one half of `pred`."""
    pred, target, ref = array(pred), array(target), array(ref)
    pairs, shape = len(pred) // 2, pred[: len(pred) // 2].shape
    weight = np.ones(shape) if mask is None else np.broadcast_to(array(mask), shape)
    index = np.zeros(shape[frame_axis], int) if index is None else np.asarray(index)
    out = {name: np.zeros((pairs, index.max() + 1)) for name in FIELDS}
    for pair in range(pairs):
        for segment in range(index.max() + 1):

            def cut(x, row, segment=segment):
                return np.take(x[row], np.flatnonzero(index == segment), axis=frame_axis - 1).ravel()

            w = cut(weight, pair)
            pw, pl = cut(pred, pair), cut(pred, pair + pairs)
            tw, tl = cut(target, pair), cut(target, pair + pairs)
            rw, rl = cut(ref, pair), cut(ref, pair + pairs)
            terms = ((pw - tw) ** 2, (pl - tl) ** 2, (rw - tw) ** 2, (rl - tl) ** 2)
            terms += ((pw - tw) ** 2 - (rw - tw) ** 2, (pl - tl) ** 2 - (rl - tl) ** 2)
            terms += ((pw - rw) ** 2, (pl - rl) ** 2, (pw - tw) * (pl - tl))
            for name, term in zip(FIELDS, terms, strict=False):
                total = w.sum()
                out[name][pair, segment] = (term[w > 0] * w[w > 0]).sum() / total if total > 0 else 0.0
            out["count"][pair, segment] = w.sum()
    return out


def pair_errors_gradient(pred, target, ref, slopes, index=None, frame_axis=2, mask=None) -> np.ndarray:
    """d(sum of slopes[name] * errors[name]) / d pred, from the derivative of each square."""
    pred, target, ref = array(pred), array(target), array(ref)
    pairs, shape = len(pred) // 2, pred[: len(pred) // 2].shape
    weight = np.ones(shape) if mask is None else np.broadcast_to(array(mask), shape)
    index = np.zeros(shape[frame_axis], int) if index is None else np.asarray(index)
    along = [1] * (len(shape) - 1)
    along[frame_axis - 1] = -1
    grad = np.zeros_like(pred)
    for pair in range(pairs):
        per_element = {name: np.asarray(s)[pair][index].reshape(along) for name, s in slopes.items()}
        total = np.zeros(index.max() + 1)
        for segment in range(len(total)):
            total[segment] = np.take(
                weight[pair], np.flatnonzero(index == segment), axis=frame_axis - 1
            ).sum()
        with np.errstate(divide="ignore"):
            inverse = np.where(total > 0, 1 / total, 0)[index].reshape(along)
        w, scale = weight[pair], 2 * inverse
        rho = [pred[row] - target[row] for row in (pair, pair + pairs)]
        for side, name in enumerate(("chosen", "rejected")):
            row = pair + side * pairs
            pull = per_element[f"policy_{name}"] + per_element[f"excess_{name}"]
            g = pull * rho[side] + per_element[f"drift_{name}"] * (pred[row] - ref[row])
            grad[row] = np.where(w > 0, w * scale * (g + 0.5 * per_element["cross"] * rho[1 - side]), 0)
    return grad


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def sides(errors, labels):
    """Excess of the better and of the worse side, policy error of the better, `[B]` each."""
    if labels is None:
        share = errors["count"] / errors["count"].sum(1, keepdims=True)
        e_w, e_l = ((share * errors[f"excess_{side}"]).sum(1) for side in ("chosen", "rejected"))
        won = (share * errors["policy_chosen"]).sum(1)
    else:
        swap = labels < 0
        e_w, e_l, won = 0.0, 0.0, 0.0
        for segment in range(labels.shape[1]):
            use = labels[:, segment] != 0
            chosen, rejected = errors["excess_chosen"][:, segment], errors["excess_rejected"][:, segment]
            policies = errors["policy_chosen"][:, segment], errors["policy_rejected"][:, segment]
            e_w = e_w + use * np.where(swap[:, segment], rejected, chosen)
            e_l = e_l + use * np.where(swap[:, segment], chosen, rejected)
            won = won + use * np.where(swap[:, segment], policies[1], policies[0])
    return e_w, e_l, won


def preference(errors, beta, objective="dpo", *, smoothing=0.0, weight=None, labels=None, ars=None, ipr=None,
               omega=None, cap=None, pull=0.0):  # fmt: skip
    """Losses `[B]` and logits `[B]`; `ars` is (k, eps, clip), `ipr` is (weight, sharpness, threshold, form)."""
    e_w, e_l, won = sides(errors, labels)
    omega = 1.0 if omega is None else array(omega)
    r_w, r_l, e_w = -e_w * omega, -e_l * omega, e_w * omega
    alpha, kept = 1.0, 1.0
    if ars:
        k, eps, clip = ars
        alpha = sigmoid(np.clip(k * (r_w - r_l) / (abs(r_l) + eps), -clip, clip))
    if ipr and ipr[3] == "switch":
        kept = 1 - ipr[0] * sigmoid(np.clip(ipr[1] * (r_w - r_l) / (abs(r_w) + eps), -clip, clip))
    logits = beta / 2 * (r_w - alpha * kept * r_l)
    z = logits if cap is None else np.minimum(logits, cap)
    if objective == "ipo":
        losses = (r_w - r_l - 1 / (2 * beta)) ** 2
    elif objective == "hinge":
        losses = np.maximum(0, 1 - z)
    else:
        losses = (1 - smoothing) * softplus(-z) + smoothing * softplus(z)
    if ipr and ipr[3] != "switch":
        amount, sharpness, threshold, form = ipr
        gate = sigmoid(sharpness * (logits - threshold))
        kept = {"bt": softplus(-beta / 2 * r_w), "hinge": np.maximum(0, e_w), "sft": won}[form]
        losses = losses + amount * gate * kept
    losses = losses + pull * beta / 2 * e_w
    return (losses if weight is None else losses * array(weight)), logits


def frozen_preference(errors, beta, alpha, gate, objective="dpo", *, smoothing=0.0, weight=None, labels=None,
                      ars=None, ipr=None, omega=None, cap=None, pull=0.0):  # fmt: skip
    """The mean loss with alpha and gate as given numbers: what its gradient has to be the gradient of."""
    losses, _ = preference(
        errors,
        beta,
        objective,
        smoothing=smoothing,
        weight=None,
        labels=labels,
        omega=omega,
        cap=cap,
        pull=pull,
    )
    if objective == "dpo" and (ars or ipr):
        e_w, e_l, won = sides(errors, labels)
        scale = 1.0 if omega is None else array(omega)
        e_w, e_l = e_w * scale, e_l * scale
        switched = ipr and ipr[3] == "switch"
        share = alpha * (1 - ipr[0] * gate) if switched else alpha
        logits = beta / 2 * (share * e_l - e_w)
        losses = softplus(-(logits if cap is None else np.minimum(logits, cap))) + pull * beta / 2 * e_w
        if ipr and not switched:
            kept = {"bt": softplus(beta / 2 * e_w), "hinge": np.maximum(0, e_w), "sft": won}[ipr[3]]
            losses = losses + ipr[0] * gate * kept
    return (losses if weight is None else losses * array(weight)).mean()
