"""What a pair brings besides its latents: manifest columns -> `PairInfo` tensors."""

from __future__ import annotations

from dataclasses import fields

import torch

from pgdpo.objectives import PairInfo

COLUMNS = [field.name for field in fields(PairInfo) if field.name not in ("timestep", "masked")]


def pair_info(rows: list[dict], sigma: torch.Tensor) -> PairInfo:
    """`PairInfo` of a batch: every column that all of its rows have, and the noise level as `timestep` `[B]`."""
    values = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float32, device=sigma.device)
        for name in COLUMNS
        if all(row.get(name) is not None for row in rows)
    }
    return PairInfo(timestep=sigma, **values)
