"""`diffusion_dpo_loss` against the public trainers' formula, eager and compiled."""

import pytest
import torch

from pgdpo_kernels import diffusion_dpo_loss

from ..conftest import run
from ..gpu.harness import Case
from .shapes import SHAPES, pair_cases

BETA = 5000.0


def fused(pred, target, ref):
    return (diffusion_dpo_loss(pred, target, ref, beta=BETA, objective="dpo").loss,), None


def published(pred, target, ref):
    """As the official Diffusion-DPO code computes it, on errors in fp32."""
    policy = (pred.float() - target.float()).pow(2).mean(dim=[1, 2, 3, 4])
    with torch.no_grad():
        reference = (ref.float() - target.float()).pow(2).mean(dim=[1, 2, 3, 4])
    (policy_w, policy_l), (ref_w, ref_l) = policy.chunk(2), reference.chunk(2)
    inside = -0.5 * BETA * ((policy_w - policy_l) - (ref_w - ref_l))
    return (-torch.nn.functional.logsigmoid(inside).mean(),), None


def cases(shapes: list[tuple] = SHAPES) -> list[Case]:
    return pair_cases("diffusion_dpo", fused, published, shapes, launches=3)


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_diffusion_dpo(benchmark, case, variant):
    run(benchmark, case, variant)
