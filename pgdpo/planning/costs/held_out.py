"""How many held-out pairs a run measures on its way: fixed before the first step, by the plan, never by a clock."""

from __future__ import annotations

import math

from pgdpo.config import Config
from pgdpo.planning.costs.flops import SampleFlops

SHARE = 0.05  # of the run's time
LEAST = 16  # pairs: below it no interval says anything
AT_THE_START = 2  # looks: of the model that the run begins with, and of the policy before its first step


def looks(config: Config) -> int:
    """How often a run looks at held-out data: every `evaluate.every` steps, and at the last one."""
    every = config.evaluate.every
    return 0 if every is None else math.ceil(config.train.steps / every)


def pairs_to_measure(
    config: Config,
    flops: SampleFlops,
    *,
    of: int,
    samples: float = 2.0,
    group_size: float = 2.0,
    reference_runs: bool,
) -> tuple[int, float]:
    """(pairs, their share of the run's FLOPs, which stand for its time); `evaluate.every_pairs` where it is set.

    `of`: pairs, or groups, that are held out; `samples`: of each on average, in clips that `flops` were counted for;
    `group_size`: samples of a group that is trained on. `reference_runs`: a training step makes a forward of the
    reference.
    """
    if not looks(config) or not of:
        return 0, 0.0
    step = flops.model(config, reference_runs=reference_runs) + flops.again(config)
    run = config.train.steps * config.train.global_batch_groups * group_size * step
    forwards = config.evaluate.draws_per_pair * (looks(config) + AT_THE_START)
    pair = samples * forwards * flops.policy.forward.total()
    wanted = config.evaluate.every_pairs
    if wanted is None:
        wanted = max(LEAST, int(SHARE * run / ((1 - SHARE) * pair)))
    count = min(wanted, of)
    return count, count * pair / (run + count * pair)
