"""Parity of the classes that share blocks with the four families, or have such blocks."""

import pytest
import torch
from parity import check_parity
from tiny_models import KIN, build

pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", KIN)
def test_wiring(name):
    """By the ops' eager maths: what a patched block hands to which op."""
    model, inputs = build(name, torch.float32)
    replaced, _, _ = check_parity(model, inputs, torch.float32, "eager")
    assert any("forward" in item for item in replaced)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", KIN)
def test_kernels(name, dtype):
    check_parity(*build(name, dtype), dtype, "triton")
