"""`group_errors` of a list of samples, a row a program, against the means that it stands for, eager and compiled."""

import pytest

from pgdpo_kernels import group_errors

from ..conftest import run
from ..gpu.harness import Case
from .shapes import SHAPES, pair_cases
from .test_pair_errors import eager


def fused(pred, target, ref):
    errors = group_errors(pred, target, ref, 1)
    return (errors.excess,), errors


def cases(shapes: list[tuple] = SHAPES) -> list[Case]:
    return pair_cases("group_errors", fused, eager, shapes)


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_group_errors(benchmark, case, variant):
    run(benchmark, case, variant)
