"""Batch-wide objectives over two ranks equal one process that has all pairs, loss and gradients."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
import torch.distributed as dist
from objective_samples import FIELDS, random_errors, random_info, to_pair_info, to_torch

from pgdpo.objectives import PairInfo, build_objective

PAIRS = 6
CASES = [
    ("kto", {}),
    ("aot", {}),
    ("bco", {}),
    ("beta_dpo", {"keep": 0.7}),
    ("dpo", {"safeguard": {"scope": "microbatch", "mu": 0.5}}),
    ("dpo", {"adaptive_clip": {}}),
]


def everyone():
    rng = np.random.default_rng(0)
    errors, info = to_torch(random_errors(rng, PAIRS, 2)), random_info(rng, PAIRS, 2)
    errors.cross = torch.tensor(rng.uniform(0.05, 0.2, (PAIRS, 2)))
    return errors, to_pair_info(info)


def rows(record, part: slice):
    """The part's pairs of a dataclass of tensors."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return type(record)(**{name: None if value is None else value[part] for name, value in values.items()})


def run(name, options, errors, pairs, leaves, group=None):
    """Two steps, so that state counts. Loss and gradients of the second."""
    objective = build_objective(name, beta=2000.0, process_group=group, **options)
    objective(errors, pairs)
    loss = objective(errors, pairs).loss
    return loss.detach(), torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def worker(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    errors, pairs = everyone()
    part = slice(3 * rank, 3 * rank + 3)
    results = []
    for name, options in CASES:
        leaves = [getattr(errors, field) for field in FIELDS.values()]
        own, info = rows(errors, part), rows(pairs, part)
        loss, gradients = run(name, options, own, info, leaves, dist.group.WORLD)
        for value in (loss, *gradients):  # as data-parallel training averages
            dist.all_reduce(value)
        results.append([value / 2 for value in (loss, *gradients)])
    torch.save(results, f"{folder}/{rank}.pt")


def test_two_ranks_equal_one(tmp_path, ranks):
    ranks.call(worker, str(tmp_path))
    errors, pairs = everyone()
    assert isinstance(pairs, PairInfo)
    leaves = [getattr(errors, field) for field in FIELDS.values()]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for (name, options), values in zip(CASES, found, strict=True):
            loss, gradients = run(name, options, errors, pairs, leaves)
            for value, wanted in zip(values, (loss, *gradients), strict=True):
                torch.testing.assert_close(
                    value, wanted, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
                )
