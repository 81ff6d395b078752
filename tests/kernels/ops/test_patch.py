"""The ops inside real diffusers models: as exact as eager code, and gone without a trace when reverted."""

import copy

import pytest
import tiny_models
import torch
from tiny_models import build, step

from pgdpo_kernels import apply_to, revert, set_backend

CASES = {
    "wan": ("wan", {}),
    "wan 2.2, a timestep per token": ("wan", {"per_token": True}),
    "wan, image conditioning": ("wan", {"image": True}),
    "wan without cross-attention norm": ("wan", {"cross_attn_norm": False}),
    "hunyuan_video": ("hunyuan_video", {}),
    "hunyuan_video, token replace": ("hunyuan_video", {"image": "token_replace"}),
    "cogvideox 5b": ("cogvideox", {}),
    "cogvideox 2b": ("cogvideox", {"rotary": False}),
    "ltx": ("ltx", {}),
    "ltx, a timestep per token": ("ltx", {"per_token": True}),
}


@pytest.fixture
def really_float64(monkeypatch):
    """diffusers casts to fp32 by `.float()` wherever it wants more than bf16: a float64 model must not lose by it."""
    to_float = torch.Tensor.float
    keep = lambda x, *a, **k: x if x.dtype == torch.float64 else to_float(x, *a, **k)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "float", keep)


def exact_step(model, inputs):
    doubles = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    return step(copy.deepcopy(model).double(), doubles)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_parity(case, dtype, really_float64):
    """Output and every gradient against float64: at most twice eager's error, and back to eager's bits."""
    family, options = CASES[case]
    model, inputs = build(family, dtype, **options)
    if dtype == torch.float32 and case not in tiny_models.FAMILIES:
        pytest.skip("the variants in bf16 alone")
    names = ["output", "latents", *(name for name, _ in model.named_parameters())]
    exact, eager = exact_step(model, inputs), step(model, inputs)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with set_backend("triton"):
        replaced = apply_to(model, strict=True)
        fused = step(model, inputs)
    assert any("forward" in name for name in replaced) and any("processor" in name for name in replaced)
    for name, ours, theirs, truth in zip(names, fused, eager, exact, strict=True):
        assert ours.dtype == theirs.dtype, name
        scale = truth.norm().item()
        error, bound = (ours.double() - truth).norm().item(), (theirs.double() - truth).norm().item()
        assert error <= 2 * bound + 1e-6 * max(scale, 1e-2), (name, error, bound, scale)
    revert(model)
    assert all(torch.equal(a, b) for a, b in zip(step(model, inputs), eager, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
