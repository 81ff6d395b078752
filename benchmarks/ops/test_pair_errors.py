"""`pair_errors` against the means that it stands for, eager and compiled."""

import pytest

from pgdpo_kernels import pair_errors

from ..conftest import run
from ..gpu.harness import Case
from .shapes import SHAPES, pair_cases


def fused(pred, target, ref):
    errors = pair_errors(pred, target, ref)
    return (errors.excess_chosen, errors.excess_rejected), errors


def eager(pred, target, ref):
    """The same numbers in plain PyTorch, by one who knows of the cancellation."""
    pred, target, ref = pred.float(), target.float(), ref.float()
    residual, ref_residual, drift = pred - target, ref - target, pred - ref
    axes = [1, 2, 3, 4]
    policy, reference = residual.pow(2).mean(axes), ref_residual.pow(2).mean(axes)
    excess = (drift * (residual + ref_residual)).mean(axes)
    return (excess,), (policy, reference, drift.pow(2).mean(axes))


def cases(shapes: list[tuple] = SHAPES) -> list[Case]:
    return pair_cases("pair_errors", fused, eager, shapes)


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_pair_errors(benchmark, case, variant):
    run(benchmark, case, variant)
