"""How many held-out pairs a run measures on its way: fixed before the first step, by the plan, never by a clock."""

from __future__ import annotations

import math

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.models.family import Family
from pgdpo.planning.costs.flops import SampleFlops

SHARE = 0.05  # of the run's time
LEAST = 16  # pairs: below it no interval says anything


def looks(steps: int, every: int) -> int:
    """How often a run of so many steps looks at held-out data: every `every` steps and at the last one."""
    return math.ceil(steps / every)


def pairs_to_measure(
    config: Config, family: Family, train: PreparedPairs, held_out: PreparedPairs, *, reference_runs: bool
) -> tuple[int, float]:
    """(pairs, their share of the run's FLOPs, which stand for its time); `evaluate.every_pairs` where it is set.

    `reference_runs`: a training step makes a forward of the reference.
    """
    shape = train.latent_shape
    flops = SampleFlops(family, config, shape)
    step = config.train.global_batch_pairs * 2
    step *= flops.model(config, reference_runs=reference_runs) + flops.again(config)
    run = config.train.steps * step
    # The policy at each look and, once, the model that the run began with.
    forward = flops.policy.forward.total()
    forwards = 2 * config.evaluate.draws_per_pair * (1 + looks(config.train.steps, config.evaluate.every))
    pair = forwards * forward * _relative(held_out, shape)
    wanted = config.evaluate.every_pairs
    if wanted is None:
        wanted = max(LEAST, int(SHARE * run / ((1 - SHARE) * pair)))
    count = min(wanted, len(held_out))
    return count, count * pair / (run + count * pair)


def _relative(held_out: PreparedPairs, shape: tuple[int, ...]) -> float:
    """The mean size of a held-out clip, of the one that FLOPs were counted for."""
    sizes = [
        math.prod(each) * len(bucket)
        for each, bucket in zip(held_out.latent_shapes, held_out.buckets, strict=True)
    ]
    return sum(sizes) / len(held_out) / math.prod(shape)
