"""What the numbers of held-out pairs at fixed draws say of a run: figures with 95% intervals over pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pgdpo.training.held_out.statistics import mean, share
from pgdpo.training.metrics import BUCKETS, bucket_name
from pgdpo.training.panels import PARTS


@dataclass(frozen=True)
class Numbers:
    """Of P pairs, each at the same D noise levels; float64 `[P, D]`."""

    sigmas: Sequence[float]  # D
    chosen: np.ndarray  # excess error over the reference
    rejected: np.ndarray
    saturated: np.ndarray  # 1 or 0, or a share, of the pair's logits; NaN where one is not finite
    loss: np.ndarray | None  # None: it cannot be made of errors alone
    # Of samples of several parts each part's excess errors of chosen and rejected, of the pairs that have it
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def figures(self) -> dict:
        """Over all levels; `buckets` has the same by noise level, over those of one bucket; `parts`, in both, what
        there is of each part."""
        places = [min(int(sigma * BUCKETS), BUCKETS - 1) for sigma in self.sigmas]
        parts = {
            bucket_name(number): self._part([d for d, place in enumerate(places) if place == number])
            for number in range(BUCKETS)
            if number in places
        }
        whole = self._part(range(len(places)))
        return {"pairs": whole.pop("pairs"), "draws": len(places), **whole, "buckets": parts}

    def _part(self, draws: Sequence[int]) -> dict:
        """Each pair's mean over these levels first: a pair is what there are independent ones of."""
        saturated = self.saturated[:, draws].mean(1)
        whole = _of_excess(self.chosen[:, draws], self.rejected[:, draws])
        parts = {
            name: _of_excess(chosen[:, draws], rejected[:, draws])
            for name, (chosen, rejected) in self.parts.items()
            if len(chosen)
        }
        return {
            "pairs": whole.pop("pairs"),
            **({} if self.loss is None else {"loss": _mean(self.loss[:, draws].mean(1))}),
            **whole,
            "saturation": _share(saturated, saturated),
            **({PARTS: parts} if parts else {}),
        }


def _of_excess(chosen: np.ndarray, rejected: np.ndarray) -> dict:
    """What excess errors `[P, D]` say."""
    chosen, rejected = chosen.mean(1), rejected.mean(1)
    margin = rejected - chosen
    return {
        "pairs": len(chosen),
        "implicit_accuracy": _share((margin > 0) + 0.5 * (margin == 0), margin),
        "displacement": _share(chosen > 0, chosen),
        "margin": _mean(margin),
        "excess/chosen": _mean(chosen),
        "excess/rejected": _mean(rejected),
    }


NOT_FINITE = {"value": None, "low": None, "high": None}


def _mean(values: np.ndarray) -> dict:
    return mean(values.tolist()) if np.isfinite(values).all() else NOT_FINITE


def _share(parts: np.ndarray, of: np.ndarray) -> dict:
    """`parts`: of each pair, 0 to 1; where one of the numbers that they were made of is not finite there is none."""
    return share(float(parts.sum()), len(parts)) if np.isfinite(of).all() else NOT_FINITE


def value_of(figures: dict, name: str, bound: str = "value") -> float | None:
    """A figure's value, or its interval's `low` or `high`; None where there is none."""
    return (figures.get(name) or {}).get(bound)
