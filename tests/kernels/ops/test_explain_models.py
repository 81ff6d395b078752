"""`explain` of a patched model: what it reads off the replacements is what a forward calls."""

import pytest
import torch
from tiny_models import FAMILIES, build

from pgdpo_kernels import apply_to, explain, set_backend

pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", FAMILIES)
def test_places_and_calls(name):
    model, inputs = build(name, torch.float32)
    assert "apply_to(model) does it" in str(explain(model))
    with set_backend("eager"):
        replaced = apply_to(model, strict=True)
        places, calls = explain(model), explain(model, **inputs)
    assert {choice.op for choice in places} == {choice.op for choice in calls}
    assert {choice.where for choice in places} <= set(replaced)
    assert {choice.backend for choice in (*places, *calls)} == {"eager"}


def test_chosen_ops_alone():
    model, _ = build("wan", torch.float32)
    apply_to(model, ops=["gate_residual"])
    assert [choice.op for choice in explain(model)] == ["gate_residual"]


def test_more_heads_than_a_kernel_holds():
    model, _ = build("ltx", torch.bfloat16)
    apply_to(model)
    with torch.device("meta"):
        model.transformer_blocks[0].attn1.to_q = torch.nn.Linear(16384, 16)
    told = {choice.op: choice for choice in explain(model)}
    assert told["qk_norm_rope"].backend == "eager" and "beyond 8192" in told["qk_norm_rope"].why
