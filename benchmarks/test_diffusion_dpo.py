"""`diffusion_dpo_loss` against the public trainers' formula, eager and compiled."""

import pytest
import torch

from pgdpo_kernels import diffusion_dpo_loss

from .conftest import run
from .harness import Case, backward, compiled, forward
from .shapes import SHAPES

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


def make(shape, dtype):
    def allocate(seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        pred, target, ref = (
            torch.randn(shape, dtype=dtype, device="cuda", generator=generator) for _ in "ptr"
        )
        return pred.requires_grad_(), target, ref

    return allocate


def moved(shape, dtype):
    """Bytes of either direction: forward reads prediction, target and reference; backward reads the first two
    and writes the gradient."""
    return 3 * torch.Size(shape).numel() * dtype.itemsize


CASES = [
    Case(
        op="diffusion_dpo",
        direction=direction,
        shape=shape,
        dtype=dtype,
        moved=moved(shape, dtype),
        launches=launches,
        make=make(shape, dtype),
        variants={
            "fused": timing(fused),
            "eager": timing(published),
            "compile": lambda inputs, timing=timing: timing(compiled(published))(inputs),
        },
    )
    for shape, dtype in SHAPES
    for direction, launches, timing in (("forward", 2, forward), ("backward", 1, backward))
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_diffusion_dpo(benchmark, case, variant):
    run(benchmark, case, variant)
