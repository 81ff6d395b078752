"""Equal passes of equal models are traced once a process: a trace takes a second, and plans do little else.

What a trace depends on is its key: the whole `model` section (the folder's path in it), the sizes of the inputs,
precision and device. Of a folder whose files a test changes, nothing is kept: such tests take a folder of their own.
"""

import functools
from collections.abc import Callable

import torch

from pgdpo.diffusion.streams import by_stream
from pgdpo.planning import plan


def once(function: Callable, key: Callable) -> Callable:
    """`function`, called once for each `key` of its arguments."""
    kept = {}

    @functools.wraps(function)
    def looked_up(*arguments, **options):
        found = key(*arguments, **options)
        if found not in kept:
            kept[found] = function(*arguments, **options)
        return kept[found]

    return looked_up


def _shapes(run: plan.Pass) -> tuple:
    with torch.device("meta"):
        noisy, sigma, conditioning = run.inputs()
    tensors = by_stream(noisy) | conditioning
    return tuple((name, value.shape) for name, value in tensors.items())


traced = once(
    plan.Planner.traced,
    lambda _, config, run: (
        config.model.model_dump_json(),
        config.train.precision,
        _shapes(run),
        run.bf16,
        run.cuda,
        run.backward,
    ),
)
