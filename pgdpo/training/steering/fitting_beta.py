"""`objective.beta: auto`: before the first step, the beta at which the run's margin will have moved the sigmoid.

A first update of Adam is lr * sign(g), whatever beta and the loss's scale. With g the gradient by one optimizer step's
batch and G that of the mean margin of other pairs, both of the model as it begins, the margin of those moves by
dm = lr * <G, sign(g)> a step: the mean over the batches of as many pairs, since one batch's direction is mostly noise.
beta is chosen so that |kappa * dm|, summed over the run's learning rates, is TARGET.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.data.visits.loading import load_batches
from pgdpo.engine.engine import learning_rate
from pgdpo.messages.errors import InputError
from pgdpo.training.step import Step
from pgdpo.training.task.task import Task

PAIRS = 64  # whose margin is predicted, at least
# |logit| that the margin would come to by the run's end if no step's gradient faded: where the sigmoid is flat. The toy
# world's came to about half of it (benchmarks/results/beta_sweep.json).
TARGET = 8.0
# What DeepSpeed counts; a step that is looked at and not taken must leave no trace.
COUNTERS = ("global_steps", "micro_steps", "global_samples", "skipped_steps")


@dataclass(frozen=True)
class Fit:
    """The beta, and what it was found by."""

    beta: float
    change: float  # of the mean margin by a first step at the peak learning rate
    pairs: int
    steps: float  # of the run, in steps at the peak learning rate

    def __str__(self) -> str:
        return (
            f"{self.beta:.4g}: a step moves the margin of {self.pairs} pairs by {self.change:.3g}, {self.steps:.0f} "
            f"steps at the peak learning rate by {self.steps * self.change:.3g}; half of beta times that is {TARGET:g}"
        )


def fitting_beta(step: Step, task: Task) -> Fit:
    """For the weights as they are, which stay; all ranks together.

    Raises InputError where no pair's margin would move.
    """
    train = step.config.train
    batches = math.ceil(
        PAIRS / train.global_batch_groups
    )  # for the directions, and for the pairs that are moved
    engine = step.policy.engine
    before = {name: getattr(engine, name) for name in COUNTERS if hasattr(engine, name)}
    directions: list[torch.Tensor] = []
    change = 0.0
    order = task.batches(range(2 * batches))
    with (
        contextlib.closing(load_batches(task.pairs, order, workers=step.config.data.workers)) as loaded,
        gradients_seen(engine) as seen,
    ):
        for number in range(2 * batches):
            norm = step.margin_gradient(loaded)
            if number < batches:
                signs = [gradient.sign() / batches for gradient in seen]
                directions = [a + b for a, b in zip(directions, signs, strict=True)] if directions else signs
            else:
                unclipped = max(1.0, (norm + 1e-6) / train.max_grad_norm)  # as DeepSpeed and torch clip
                change += unclipped * _product(directions, seen, engine) / batches
            seen.clear()
    vars(engine).update(before)
    rates = [learning_rate(train, number) for number in range(train.steps)]
    change, steps = abs(train.learning_rate * change), sum(rates) / train.learning_rate
    if not (math.isfinite(change) and change > 0):
        raise InputError(
            f"objective.beta is `auto`, and a step would move the margin by {change}: the gradient of the margin is "
            "nothing, or not finite; write a number"
        )
    beta = float(f"{2 * TARGET / (change * steps):.4g}")  # no more digits than it is good for
    return Fit(beta, change, batches * train.global_batch_groups, steps)


@contextlib.contextmanager
def gradients_seen(engine: deepspeed.DeepSpeedEngine) -> Iterator[list[torch.Tensor]]:
    """While entered the optimizer takes no step: what it would have taken it by, under ZeRO this rank's part, is put
    into the list; it is called once a step, or for each of its groups."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    step, seen = optimizer.step, []

    def look(*_: object, **__: object) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        seen.extend(p.grad.detach().float().clone() for p in parameters if p.grad is not None)

    optimizer.step = look
    try:
        yield seen
    finally:
        optimizer.step = step


def _product(
    first: list[torch.Tensor], second: list[torch.Tensor], engine: deepspeed.DeepSpeedEngine
) -> float:
    """The scalar product of what `gradients_seen` found twice, over all ranks."""
    parts = [(a * b).double().sum() for a, b in zip(first, second, strict=True)]
    total = torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=engine.device)
    if engine.zero_optimization_stage() > 0:  # each rank has its part
        dist.all_reduce(total)
    return float(total)
