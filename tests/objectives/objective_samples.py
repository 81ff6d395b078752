"""Random pair errors and pair data, for the oracle and for the objectives."""

from __future__ import annotations

import numpy as np
import torch
from objective_oracle import Errors

from pgdpo.objectives import PairInfo
from pgdpo_kernels import PairErrors

FIELDS = {
    "E_pw": "policy_chosen",
    "E_pl": "policy_rejected",
    "e_w": "excess_chosen",
    "e_l": "excess_rejected",
    "D_w": "drift_chosen",
    "D_l": "drift_rejected",
}


def random_errors(rng: np.random.Generator, pairs: int, segments: int) -> Errors:
    """Errors near 0.1, 1e-3 away from the reference's."""
    shape = (pairs, segments)
    values = {name: rng.uniform(0.05, 0.3, shape) for name in ("E_pw", "E_pl")}
    values |= {name: rng.normal(0, 1e-3, shape) for name in ("e_w", "e_l")}
    values |= {name: rng.uniform(0, 1e-3, shape) for name in ("D_w", "D_l")}
    return Errors(values, rng.integers(1, 9, shape).astype(float))


def to_torch(errors: Errors, dtype=torch.float64, grad: bool = True) -> PairErrors:
    values = {
        field: torch.tensor(errors.segments[name], dtype=dtype, requires_grad=grad)
        for name, field in FIELDS.items()
    }
    with torch.no_grad():
        refs = {
            f"ref_{side}": values[f"policy_{side}"] - values[f"excess_{side}"]
            for side in ("chosen", "rejected")
        }
    return PairErrors(**values, **refs, count=torch.tensor(errors.count, dtype=dtype))


def random_info(rng: np.random.Generator, pairs: int, segments: int) -> dict[str, np.ndarray]:
    """Everything that a pair may bring, but for `masked`."""
    label = rng.choice([-1.0, 1.0], (pairs, 2))
    label[0, 1] = 0
    return {
        "weight": rng.uniform(0.5, 2, pairs),
        "probability": rng.uniform(0.05, 0.95, pairs),
        "reward_margin": rng.normal(0.5, 1, pairs),
        "reward": rng.uniform(0.1, 1, (pairs, 2)),
        "label_smoothing": rng.uniform(0, 0.4, pairs),
        "segment_labels": rng.choice([-1.0, 0.0, 1.0], (pairs, segments)),
        "tail": rng.uniform(0, 1, (pairs, segments)),
        "gap_frequency": rng.uniform(0.05, 1, pairs),
        "uncertainty": rng.uniform(0, 1, pairs),
        "timestep": rng.uniform(0, 1, pairs),
        "timestep_weight": rng.uniform(0.2, 2, pairs),
        "advantage": rng.normal(0, 1, (pairs, 2)),
        "label": label,
    }


def to_pair_info(info: dict, dtype=torch.float64) -> PairInfo:
    values = {}
    for name, value in info.items():
        if isinstance(value, Errors):
            values[name] = to_torch(value, dtype, grad=False)
        else:
            values[name] = torch.tensor(value, dtype=dtype)
    return PairInfo(**values)
