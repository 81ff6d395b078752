"""Can a linear probe tell the chosen from the rejected latents? If nearly always, a model may learn that cue alone.

After "More is Less" (Section D of the catalogue's data rows): the AUC of a linear classifier on simple statistics of
the latents. 0.5: they look alike; above 0.9 look at which statistic gives them away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

FOLDS = 5
RIDGE = 1e-2
SUSPICIOUS = 0.9


@dataclass(frozen=True)
class Probe:
    """AUC on pairs that the probe was not fitted to, and the statistics that tell most on their own."""

    auc: float
    pairs: int
    telling: list[tuple[str, float]]  # (statistic, its own AUC), the most telling first

    def __str__(self) -> str:
        cues = ", ".join(f"{name} {auc:.2f}" for name, auc in self.telling[:3])
        advice = (
            ": superficial cues tell chosen from rejected; look at them in the report, or select by `margin`"
            if self.auc > SUSPICIOUS
            else ""
        )
        return f"linear probe on latent statistics of {self.pairs} pairs: AUC {self.auc:.2f} ({cues}){advice}"


def statistics(latents: torch.Tensor) -> dict[str, float]:
    """Simple numbers of the latents of a clip, `[C, F, H, W]`, or of its sound, `[C, L, M]`: level and spread per
    channel, motion, detail (of sound from band to band)."""
    x = latents.float()
    x = x if x.ndim == 4 else x[:, :, None]
    values = {}
    for channel in range(min(len(x), 16)):
        values[f"mean of channel {channel}"] = x[channel].mean()
        values[f"spread of channel {channel}"] = x[channel].std()
    if x.shape[1] > 1:
        steps = x.diff(dim=1)
        values["motion"] = steps.abs().mean()
        values["largest jump"] = steps.abs().mean(dim=(0, 2, 3)).max()
    if x.shape[3] > 1:
        values["detail"] = x.diff(dim=3).abs().mean()
    return {name: float(value) for name, value in values.items()}


def probe(chosen: list[dict[str, float]], rejected: list[dict[str, float]]) -> Probe:
    """Linear discriminant on four fifths of the pairs, scored on the rest; both clips of a pair are in one fold."""
    names = list(chosen[0])
    sides = [
        np.array([[row[name] for name in names] for row in rows]) for rows in (chosen, rejected)
    ]  # (N, K) each
    center, scale = np.concatenate(sides).mean(0), np.concatenate(sides).std(0) + 1e-12
    sides = [(side - center) / scale for side in sides]
    folds = np.arange(len(chosen)) % min(FOLDS, len(chosen))
    scores = [np.zeros(len(chosen)), np.zeros(len(chosen))]
    for fold in np.unique(folds):
        fitted = [side[folds != fold] for side in sides]
        if len(fitted[0]) == 0:
            continue
        spread = sum(np.cov(part, rowvar=False, bias=True) for part in fitted) / 2 + RIDGE * np.eye(
            len(names)
        )
        direction = np.linalg.solve(spread, fitted[0].mean(0) - fitted[1].mean(0))
        for score, side in zip(scores, sides, strict=True):
            score[folds == fold] = side[folds == fold] @ direction
    alone = [max(value, 1 - value) for value in map(auc, sides[0].T, sides[1].T)]
    telling = sorted(zip(names, alone, strict=True), key=lambda row: -row[1])
    return Probe(auc(*scores), len(chosen), telling)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive's score is above a negative's, ties half."""
    above = positive[:, None] - negative[None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
